"""What each tool says of the cases of `peers.py`; runs in the tool's own environment.

    python peer_tools.py TOOL NAMES.json ANSWERS.json    # with tests/helpers on the path

Every function here uses one tool as its documentation says and returns what it complained of, as
pairs of a check's name and its message: failures and warnings alike. What it is given is the case's
own: model, batch, loss, optimizer and number of steps.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from peer_cases import Case, build, train
from torch import Tensor, nn

SECONDS = 100
"""Of processor time; after so many a tool has no answer."""

Said = list[tuple[str, str]]


def _asserts(said: Said, check: str, call: Callable[[], Any]) -> None:
    """Notes what an assertion of a tool says; other exceptions are the tool's failure."""
    try:
        call()
    except AssertionError as error:
        said.append((check, str(error)))


def bncheck(make: Callable[[], Case]) -> Said:
    """`check()`, as the README has it."""
    from pytest_bncheck import check

    case = make()
    if len(case.batches) > 1:
        report = check(case.model, batches=case.batches, **case.options)
    else:
        report = check(case.model, case.batches[0], **case.options)
    return [(found.code, found.message) for found in report.findings]


def _in_both_modes(case: Case) -> tuple[Any, Any]:
    model = train(case)
    with torch.no_grad():
        trained = copy.deepcopy(model).train()(case.inputs)
        return trained, copy.deepcopy(model).eval()(case.inputs)


def _learned(model: nn.Module, case: Case) -> bool:
    """Whether training mode is right, so that an accuracy can be asked for."""
    with torch.no_grad():
        outputs = copy.deepcopy(model).train()(case.inputs)
    return bool((outputs.argmax(-1) == case.targets).float().mean() >= 0.9)


def allclose(make: Callable[[], Case]) -> Said:
    """The comparison that one writes first, at PyTorch's own tolerances."""
    same = torch.allclose(*_in_both_modes(make()))
    return [] if same else [("allclose", "the modes differ")]


def allclose_loose(make: Callable[[], Case]) -> Said:
    """The same after the first false alarms."""
    same = torch.allclose(*_in_both_modes(make()), rtol=0.1, atol=0.1)
    return [] if same else [("allclose", "the modes differ by more than 0.1")]


def deepchecker(make: Callable[[], Case]) -> Said:
    """TheDeepChecker's check of switched modes, restated from its paper and its settings.

    Debiased linear CKA of each activation and of the outputs in both modes of at least 0.75, and
    losses that differ by at most half of the larger one. The package itself is for TensorFlow 1.
    """
    case = make()
    model = train(case)
    kept: list[dict[str, Tensor]] = []
    losses = []
    for training in (True, False):
        again = copy.deepcopy(model).train(training)
        seen: dict[str, Tensor] = {}
        for name, module in again.named_modules():
            if type(module).__module__ == "torch.nn.modules.activation":
                module.register_forward_hook(
                    lambda _m, _i, out, name=name, seen=seen: seen.__setitem__(name, out)
                )
        with torch.no_grad():
            seen["outputs"] = again(case.inputs)
        losses.append(float(case.loss(seen["outputs"], case.targets)))
        kept.append(seen)
    said: Said = []
    for name in kept[0].keys() & kept[1].keys():
        one, other = (each[name] for each in kept)
        if isinstance(one, Tensor) and len(one) > 3 and (cka := _cka(one, other)) <= 0.75:
            said.append(("cka", f"{name}: CKA {cka:.2f} between the modes"))
    if abs(losses[0] - losses[1]) > 0.5 * max(losses):
        said.append(
            ("loss", f"loss {losses[0]:.3g} in training mode, {losses[1]:.3g} in eval mode")
        )
    return said


def _cka(one: Tensor, other: Tensor) -> float:
    """Debiased linear CKA (Kornblith et al. 2019, with the unbiased HSIC of Song et al. 2012)."""

    def gram(values: Tensor) -> Tensor:
        flat = values.flatten(1).double()
        product = flat @ flat.T
        return product - torch.diag(product.diag())

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        n = len(a)
        middle = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))
        return ((a * b).sum() + middle) / (n * (n - 3))

    a, b = gram(one), gram(other)
    scale = (hsic(a, a) * hsic(b, b)).clamp(min=0).sqrt()
    return float(hsic(a, b) / scale) if scale > 0 else 1.0


def pytest_torch(make: Callable[[], Case]) -> Said:
    """Its three paths for a model: the contract, a checkpoint, and training sanity."""
    import pytest_torch as tool

    said: Said = []
    case = make()
    model = train(case)
    report = tool.check_inference_contract(
        copy.deepcopy(model).eval(), case.inputs, raise_on_failure=False
    )
    said += [(failed.name, failed.message) for failed in report.failures]
    _asserts(
        said,
        "checkpoint",
        lambda: tool.assert_checkpoint_roundtrip(lambda: make().model, case.inputs, model=model),
    )
    if not case.steps:
        return said

    def loss(outputs: Any) -> Tensor:
        return case.loss(outputs, case.targets)

    def fresh() -> nn.Module:
        return make().model.train()

    for name, options in {
        "assert_gradients_finite": {},
        "assert_all_params_receive_grad": {"ignore": case.frozen},
        "assert_loss_decreases": {"optimizer": case.optimizer},
        "assert_overfits_one_batch": {},
    }.items():
        check = getattr(tool, name)
        _asserts(said, name, lambda: check(fresh(), case.inputs, loss, **options))  # noqa: B023
    if case.frozen:
        parts = {name.rpartition(".")[0].partition(".")[0] for name in case.frozen}
        patterns = [f"{part}.*" for part in sorted(parts)]
        _asserts(
            said, "assert_frozen", lambda: tool.assert_frozen(fresh(), case.inputs, loss, patterns)
        )
    return said


def torchtest2(make: Callable[[], Case]) -> Said:
    """`check_model` on the model, and after training the simple cases that it must get right."""
    import torchtest2 as tool

    case = make()
    report = tool.check_model(
        case.model,
        case.inputs,
        case.targets,
        loss_fn=case.loss,
        optimizer=case.optimizer(case.model.parameters()),
        frozen=case.frozen,
        gradcheck=case.own_backward,
        skip=() if case.steps else ("initial_loss",),
    )
    said = [(found.name, found.message) for found in [*report.failures, *report.warnings]]
    model = train(case := make())
    if _learned(model, case):
        _asserts(
            said,
            "minimum_functionality",
            lambda: tool.assert_minimum_functionality(
                model, case.inputs, case.targets, min_accuracy=0.9
            ),
        )
    return said


def torcheck(make: Callable[[], Case]) -> Said:
    """Its checks registered before the training loop: parameters change, outputs, no NaN."""
    import torcheck as tool

    case = make()
    model = case.model
    if not case.steps or isinstance(model, torch.jit.ScriptModule):
        return []  # it lives in the loop
    optimizer = None
    if not case.train_step:
        optimizer = case.optimizer(model.parameters())
        tool.register(optimizer)
        for name, parameter in model.named_parameters():
            tool.add_tensor(parameter, tensor_name=name, changing=name not in case.frozen)
        tool.add_module_nan_check(model)
        tool.add_module_inf_check(model)
    tool.add_module_output_range_check(model, output_range=(0, 1), negate_range=True)
    try:
        train(case, optimizer)
    except RuntimeError as error:
        known = {"should change": "changing", "should not change": "unchanging"}
        known |= {"NaN": "nan", "inf": "inf", "shouldn't all": "range"}
        found = next((check for text, check in known.items() if text in str(error)), None)
        if found is None:
            raise
        return [(found, str(error))]
    return []


def modeltest(make: Callable[[], Case]) -> Said:
    """Its quick start: a floor under the accuracy of the trained model."""
    from modeltest import ModelSuite
    from modeltest.scenarios import MinimumAccuracyTest

    model = train(case := make())
    if not _learned(model, case):
        return []
    suite = ModelSuite(name="trained")
    suite.add_test(MinimumAccuracyTest(threshold=0.85))
    result = suite.run(model, case.inputs.numpy(), case.targets.numpy(), model_name="model")
    (test,) = result.results
    if test.status.value == "ERROR":
        raise RuntimeError(test.detail)
    return [] if test.passed else [("minimum_accuracy", test.detail)]


def neural_net_checklist(make: Callable[[], Case]) -> Said:
    """All that `assert_all_for_classification_cross_entropy_loss` asserts, one by one.

    Overfitting ends at the loss of its README's example, or fails after 4096 steps; to its
    default of 0.0001 within 65536 steps it takes minutes.
    """
    from neural_net_checklist import torch_diagnostics as tool

    case = make()
    if not case.steps:
        return []  # a recipe for training
    batch = case.batches[0]
    classes = {"num_classes": 4}
    said: Said = []
    stopped: Exception | None = None
    for name, options in {
        "assert_balanced_classification_cross_entropy_loss_at_init": classes,
        "assert_balanced_classification_cross_entropy_init_calibrated": classes,
        "assert_forward_batch_independence": {},
        "assert_non_zero_gradients": {},
        "assert_backward_batch_independence": {},
        "assert_input_independent_baseline_worse": {},
        "assert_overfit_to_batch": {"threshold": 0.1, "max_steps": 4096},
    }.items():
        check = getattr(tool, name)
        takes_factory = name in (
            "assert_forward_batch_independence",
            "assert_backward_batch_independence",
            "assert_input_independent_baseline_worse",
        )
        subject = (lambda: make().model) if takes_factory else make().model
        try:
            _asserts(said, name, lambda: check(subject, batch, **options))  # noqa: B023
        except Exception as error:
            # It calls the model on single samples, which batch normalisation refuses to train on.
            if "Expected more than 1 value per channel" not in str(error):
                stopped = error
    if stopped and not said:
        raise stopped
    return said


def lightning(make: Callable[[], Case]) -> Said:
    """What a Trainer warns of, but for what it says of any model in this harness."""
    case = make()
    usual = {_words(text) for text in _fit(_plain(by_hand=case.train_step is not None))}
    return [(_kind(text), text) for text in _fit(case) if _words(text) not in usual]


def _plain(by_hand: bool) -> Case:
    torch.manual_seed(0)
    model, inputs = nn.Linear(20, 4), torch.randn(32, 20)

    def train_step(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).sum()  # type: ignore[no-any-return]

    step = train_step if by_hand else None
    return Case(model, [(inputs, torch.arange(32) % 4)], steps=2, train_step=step)


def _fit(case: Case) -> list[str]:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = case.model
            self.automatic_optimization = not case.train_step

        def training_step(self, batch: Any, _: int) -> Any:
            if case.train_step:
                return case.train_step(self.model, batch)
            return case.loss(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("loss", case.loss(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return None if case.train_step else case.optimizer(self.parameters())

    def loader(batches: list[Any]) -> Any:
        return torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    batches = (case.batches * case.steps)[: case.steps]
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("pytorch_lightning")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = pl.Trainer(
                max_epochs=1,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            if batches:
                trainer.fit(Module(), loader(batches), loader(case.batches[:1]))
            else:
                trainer.validate(Module(), loader(case.batches[:1]), verbose=False)
    finally:
        logger.removeHandler(handler)
    return [*lines, *(str(each.message) for each in caught)]


def _words(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def _kind(text: str) -> str:
    return "eval mode" if "eval mode" in text else "warning"


TOOLS = {
    "bncheck": bncheck,
    "allclose": allclose,
    "allclose-loose": allclose_loose,
    "deepchecker": deepchecker,
    "pytest-torch": pytest_torch,
    "torchtest2": torchtest2,
    "torcheck": torcheck,
    "modeltest": modeltest,
    "neural-net-checklist": neural_net_checklist,
    "lightning": lightning,
}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def answer(tool: str, suite: str, name: str, which: str) -> dict[str, Any]:
    """What a tool says of a case, or why it has no answer."""
    said: Said = []
    error = ""
    quiet = io.StringIO()
    with redirect_stdout(quiet), redirect_stderr(quiet), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with limited(SECONDS):
                said = TOOLS[tool](lambda: build(suite, name, which))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}".partition("\n")[0][:200]
    short = [[check, " ".join(text.split())[:200]] for check, text in said]
    return {"suite": suite, "name": name, "which": which, "said": short, "error": error}


def main() -> None:
    tool, names, answers = sys.argv[1:]
    torch.set_num_threads(1)
    found = [answer(tool, *name) for name in json.loads(Path(names).read_text())]
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
