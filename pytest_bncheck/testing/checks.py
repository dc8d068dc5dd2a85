"""The contract of an adapter as checks, each with messages that name the breach.

A check gets a `Bench` and returns None, or the reason why these models cannot make it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from pytest_bncheck.adapters.base import Adapter, Mode, Rehearsing, Stateful
from pytest_bncheck.testing.bench import Bench, outputs, parts, same
from pytest_bncheck.testing.recursion import recursion
from pytest_bncheck.testing.restoring import (
    restored_after_error_in_pass,
    restored_after_error_in_step,
    restored_after_success,
    restored_but_for_weights,
)
from pytest_bncheck.testing.state import changed, numbers
from pytest_bncheck.types import Calls, Dialect, Layer, Prediction, Statistics

Check: TypeAlias = Callable[[Bench], str | None]

# required members ---------------------------------------------------------------------------------


def required_members(bench: Bench) -> None:
    """All that a check asks for is there and has the right type."""
    __tracebackhide__ = True
    missing = ", ".join(sorted(bench.adapter.__abstractmethods__))
    bench.demand(not missing, missing, "is missing", "nine members are required")
    with bench.open() as lab:
        for name in ("framework", "backend", "device", "dialect"):
            kind = Dialect if name == "dialect" else str
            found = getattr(lab, name, None)
            bench.demand(isinstance(found, kind), name, f"is {found!r}", f"it is a {kind.__name__}")
        lab.begin()
        layers = lab.layers()
        _demand_layers(bench, lab, layers)
        for exact in (False, True):
            _demand_statistics(bench, f"read(exact={exact})", lab.read(exact=exact), layers)
        for mode in Mode:
            member, found = f"run(0, {mode})", lab.run(0, mode)
            if mode in (Mode.EVAL, Mode.BATCH_STATISTICS):
                _demand_prediction(bench, member, found.prediction, lab.batch_size)
            if mode in (Mode.BATCH_STATISTICS, Mode.TRAINING):
                _demand_statistics(bench, member, found.statistics, layers)
            if mode is Mode.BATCH_STATISTICS:
                _demand_calls(bench, member, found.calls, layers)


def _demand_layers(bench: Bench, lab: Adapter, layers: list[Layer]) -> None:
    __tracebackhide__ = True
    names = [layer.name for layer in layers]
    unique = len(set(names)) == len(names)
    bench.demand(unique, "layers", f"names are {names}", "a name stands for one layer")
    for layer in layers:
        rate, momentum = layer.update_rate, layer.momentum
        bench.demand(
            rate is None or 0 <= rate <= 1,
            "layers",
            f"update_rate of {layer.name!r} is {rate!r}",
            "it is in [0, 1], or None for the cumulative average",
        )
        if rate and momentum is not None:
            said = lab.dialect.momentum_of(rate)
            bench.demand(
                math.isclose(said, momentum, rel_tol=1e-6, abs_tol=1e-9),
                "dialect",
                f"momentum_of({rate:g}) is {said:g}, and {layer.name!r} with this update_rate "
                f"has momentum {momentum:g}",
                "momentum_of gives the framework's momentum for an update rate",
            )


def _demand_statistics(bench: Bench, member: str, found: Statistics, layers: list[Layer]) -> None:
    __tracebackhide__ = True
    bench.demand(
        len(found.mean) == len(found.var) == len(layers),
        member,
        f"gave {len(found.mean)} means and {len(found.var)} variances for {len(layers)} layers",
        "statistics have one entry for each layer",
    )
    for mean, var in zip(found.mean, found.var, strict=True):
        bench.demand(
            all(_is_real(each) and each.ndim == 1 for each in (mean, var))
            and mean.shape == var.shape,
            member,
            f"gave {_kind(mean)} as mean and {_kind(var)} as variance",
            "both are floating-point arrays of numpy of shape (channels,)",
        )


def _demand_prediction(
    bench: Bench, member: str, found: Prediction | None, size: int | None
) -> None:
    __tracebackhide__ = True
    outputs = {} if found is None else found.outputs
    bench.demand(
        bool(outputs), member, "gave no prediction", "it gives one, with at least one output"
    )
    for path, output in outputs.items():
        bench.demand(
            _is_real(output) and output.ndim > 0 and size in (None, len(output)),
            member,
            f"gave {_kind(output)} as {path!r} for a batch of {size}",
            "outputs are floating-point arrays of numpy whose leading axis is the batch",
        )
    for name in ("loss", "accuracy", "constant_loss"):
        value = getattr(found, name)
        bench.demand(
            value is None or isinstance(value, float),
            member,
            f"gave {_kind(value)} as {name}",
            "it is a float, or None where it cannot be computed",
        )


def _demand_calls(bench: Bench, member: str, calls: Calls, layers: list[Layer]) -> None:
    __tracebackhide__ = True
    lengths = {len(calls.training), len(calls.inference), len(calls.values)}
    bench.demand(
        lengths == {len(layers)},
        member,
        f"gave {calls} for {len(layers)} layers",
        "calls have one entry for each layer",
    )
    pairs = zip(calls.training, calls.values, strict=True)
    bench.demand(
        all((n or 0) >= 1 for count, n in pairs if count),
        member,
        f"gave values={calls.values} where training={calls.training}",
        "values are those per channel that one call's batch statistics come from",
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return f"an object of type {type(value).__name__}"


# training -----------------------------------------------------------------------------------------


def training_record(bench: Bench) -> None:
    """Losses, history and calls fit the steps, and layers keep their order."""
    __tracebackhide__ = True
    steps, run = bench.steps, bench.first
    bench.demand(
        len(run.losses) == steps and all(isinstance(each, float) for each in run.losses),
        "losses",
        f"are {run.losses} after {steps} steps",
        "one float for every training step",
    )
    bench.demand(
        all(map(math.isfinite, run.losses)),
        "losses",
        f"are {run.losses}",
        "a small model on a plain batch has finite losses",
    )
    bench.demand(
        len(run.history) == steps + 1,
        "history",
        f"has {len(run.history)} entries after {steps} steps",
        "running statistics before the first step and after each: steps + 1 entries",
    )
    bench.demand(
        all(map(np.array_equal, parts(run.history[-1]), parts(run.stop))),
        "history",
        "differs in its last entry from what read() gives after the last step",
        "running statistics before the first step and after each",
    )
    before, after = ([layer.name for layer in each] for each in (run.before, run.layers))
    bench.demand(
        sorted(before) == sorted(after),
        "layers",
        f"were {before} before training and {after} after it",
        "the layers are the same from `begin` on",
    )
    _demand_calls(bench, "calls", run.calls, run.layers)
    in_pass = run.found.calls.training
    bench.demand(
        run.calls.training == tuple(steps * count for count in in_pass),
        "calls",
        f"has training={run.calls.training} after {steps} steps, and one pass with batch "
        f"statistics has training={in_pass}",
        "calls of each layer over all training steps together",
    )


def same_seed(bench: Bench) -> None:
    """Two fresh models with the same seed give the same numbers."""
    __tracebackhide__ = True
    with bench.open(bench.settled()) as lab:
        run = bench.experiment(lab)
    bench.demand_same(
        run,
        "step",
        "a second training of an equal model with the same seed",
        "all random numbers come from the model or from generators that the experiment seeds",
    )


# passes and statistics ----------------------------------------------------------------------------


def passes_change_nothing(bench: Bench) -> None:
    """A pass leaves weights and running statistics as they were."""
    __tracebackhide__ = True
    model = bench.settled()
    with bench.open(model) as lab:
        bench.train(lab)
        first = lab.predict(0)
        for member, make in _passes(lab).items():
            weights, running = numbers(bench.state(model)), lab.read()
            make()
            bench.demand(
                all(map(np.array_equal, parts(running), parts(lab.read()))),
                member,
                "changed the running statistics",
                "running statistics are afterwards what they were before",
            )
            found = changed(weights, bench.state(model))
            contract = "a pass changes no parameter"
            bench.demand(found is None, member, f"changed the model: {found}", contract)
            again = lab.predict(0)
            bench.demand(
                first.random or same(again.outputs, first.outputs, lab.noise),
                member,
                "changed what eval mode predicts",
                contract,
            )


def _passes(lab: Adapter) -> dict[str, Callable[[], object]]:
    """Every kind of pass that the adapter offers, by the call."""
    passes: dict[str, Callable[[], object]] = {
        f"run(0, {mode})": partial(lab.run, 0, mode, observe=False) for mode in Mode
    }
    if isinstance(lab, Stateful):
        shifted = {state.name: state.stop + 1.0 for state in lab.states()}
        passes["train_from(0)"] = partial(lab.train_from, 0, shifted, passes=2)
        passes["train_from(0, draw=1)"] = partial(lab.train_from, 0, draw=1)
    if isinstance(lab, Rehearsing):
        passes["rehearse(0)"] = partial(lab.rehearse, 0)
    return passes


def write_and_read(bench: Bench) -> None:
    """What was written is read, and writing what was read changes nothing."""
    __tracebackhide__ = True
    with bench.open() as lab:
        bench.train(lab)
        for exact in (False, True):
            before, predicted = lab.read(exact=exact), lab.predict(0)
            other = Statistics(
                tuple(mean + 1.0 for mean in before.mean), tuple(2.0 * v + 1.0 for v in before.var)
            )
            for written in (other, before):
                lab.write(written, exact=exact)
                _demand_read(bench, lab, written, exact)
            bench.demand(
                predicted.random or same(lab.predict(0).outputs, predicted.outputs, lab.noise),
                "write",
                f"of what read(exact={exact}) gave changed what eval mode predicts",
                "write(read()) changes nothing, with and without exact=True",
            )


ROUNDINGS = 16
"""Roundings that the conversion of a variance may cost."""


def _demand_read(bench: Bench, lab: Adapter, written: Statistics, exact: bool) -> None:
    __tracebackhide__ = True
    found = lab.read(exact=exact)
    for k, layer in enumerate(lab.layers()):
        noise = ROUNDINGS * layer.resolution
        for name in ("mean", "var"):
            wanted, got = getattr(written, name)[k], getattr(found, name)[k]
            bench.demand(
                got.shape == wanted.shape
                and bool(np.allclose(got, wanted, rtol=noise, atol=noise)),
                "write",
                f"of a {name} of {layer.name!r}, and read(exact={exact}) gave another: "
                f"{got.flat[0]:.6g}, not {wanted.flat[0]:.6g}, in its first channel",
                f"read(exact={exact}) gives what write(..., exact={exact}) set",
            )


def exact_write(bench: Bench) -> str | None:
    """Batch statistics written exactly make eval mode repeat the training prediction."""
    __tracebackhide__ = True
    with bench.open() as lab:
        bench.train(lab)
        found = lab.run(0, Mode.BATCH_STATISTICS)
        counts = zip(found.calls.training, found.calls.inference, strict=True)
        if any(sum(pair) > 1 for pair in counts):
            return "a layer is called more than once"
        wanted = outputs(found)

        def repeats(scale: Mapping[int, float]) -> bool:
            var = [v * scale.get(k, 1.0) for k, v in enumerate(found.statistics.var)]
            lab.write(Statistics(found.statistics.mean, tuple(var)), exact=True)
            return same(lab.predict(0).outputs, wanted, lab.noise)

        if repeats({}):
            return None
        kind = {k: n / (n - 1) for k, n in enumerate(found.calls.values) if n and n > 1}
        breach = "did not make eval mode repeat the training prediction"
        if repeats(kind) or repeats({k: 1.0 / each for k, each in kind.items()}):
            breach += "; the variance is off by n/(n-1), so is probably converted once too often"
        bench.demand(
            False,
            "write",
            breach,
            "batch statistics written with exact=True are stored as they are, so that eval mode "
            "repeats the batch's normalisation",
        )
    return None


CHECKS: Mapping[str, Check] = {
    "the required members are there": required_members,
    "losses, history and calls fit the steps": training_record,
    "the same seed gives the same numbers": same_seed,
    "passes change nothing": passes_change_nothing,
    "write(read()) changes nothing": write_and_read,
    "history obeys the recursion": recursion,
    "write(batch statistics, exact=True) repeats the training prediction": exact_write,
    "restore after success": restored_after_success,
    "restore with keep_weights": restored_but_for_weights,
    "restore after an error in a step": restored_after_error_in_step,
    "restore after an error in a pass": restored_after_error_in_pass,
}
"""All checks by name, in the order in which they are made."""
