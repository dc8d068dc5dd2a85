"""What a batch means to a PyTorch model: arguments of its call, targets, number of samples."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pytest_bncheck.adapters.hints import kind, seen
from pytest_bncheck.adapters.refusals import no_samples, one_sample, refuse_source
from pytest_bncheck.adapters.targets import KEYS
from pytest_bncheck.adapters.torch.data import leaves, named_targets
from pytest_bncheck.adapters.torch.hints import hints
from pytest_bncheck.adapters.torch.internals import uncompiled
from pytest_bncheck.types import InputError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)

_WHOLE = ("batch", "inputs", "features", "data")
"""Names of a model's only argument that stand for a whole dict."""


@dataclass(frozen=True)
class Call:
    """The call that a batch stands for, ``model(*args, **kwargs)``, and its targets."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any

    @property
    def gives_targets(self) -> bool:
        """Whether the model gets the targets."""
        given = (*self.args, *self.kwargs.values())
        return self.targets is not None and any(each is self.targets for each in given)


def understand(model: nn.Module, batch: Any, *, targets: bool = True) -> Call:
    """The call that a batch stands for.

    A pair is (inputs, targets); inputs that are a tuple, a list or a dict are several arguments,
    but two lists, of samples and of dicts with their targets, stay lists. From a dict the model
    gets the keys that it has arguments for, targets included if it computes a loss itself; the
    targets are under "labels" or a similar key, or under the only key that is left.

    Parameters
    ----------
    targets
        Whether there have to be some; else a tensor alone, or in a tuple by itself, is the inputs.

    Raises
    ------
    InputError
        If the batch is neither, or a dict's keys are not the model's arguments.
    """
    if isinstance(batch, Mapping):
        return _understand_dict(model, dict(batch))
    if named_targets(batch) is not None:
        return _understand_object(model, batch)
    if not targets and isinstance(batch, Tensor):
        return Call((batch,), {}, None)
    if not targets and isinstance(batch, (tuple, list)) and len(batch) == 1:
        return Call(tuple(batch), {}, None)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        known: tuple[str, ...] = ()
        if isinstance(batch, (tuple, list)) and len(batch) > 2:
            known = _guesses("model(batch[0])", f"batch[{len(batch) - 1}]")
        refuse_source(batch)
        raise hints.no_forward_and_step(
            f"batch: expected (inputs, targets) or a dict, got {kind(batch)} ({seen(batch)})",
            *known,
        )
    inputs, expected = batch
    if all(isinstance(leaf, (str, bytes, type(None))) for _, leaf in leaves(inputs)):
        raise hints.no_forward(
            f"batch: there is no array in its inputs, {kind(inputs)} ({seen(batch)})"
        )
    if per_sample(batch):
        return Call((inputs,), {}, expected)
    if isinstance(inputs, Mapping):
        return Call(*_keywords(model, dict(inputs)), expected)
    return Call(tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}, expected)


def targets_of(model: nn.Module, batch: Any) -> Any:
    """The targets in a batch, or None if it holds none."""
    try:
        return understand(model, batch).targets
    except InputError:
        if isinstance(batch, Mapping):
            return next((batch[key] for key in KEYS if key in batch), None)
        return named_targets(batch)


def refuse_samples(model: nn.Module, batches: Iterable[Any]) -> None:
    """Raise an InputError if what is given as batches are samples: with one number as target."""
    for batch in batches:
        targets = targets_of(model, batch)
        if isinstance(targets, (int, float)) or (isinstance(targets, Tensor) and not targets.dim()):
            raise one_sample(batch)


def per_sample(batch: Any) -> bool:
    """Whether a batch is a list of samples and a list of dicts of targets, as detectors take it."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    inputs, targets = batch
    lists = isinstance(inputs, (tuple, list)) and isinstance(targets, (tuple, list))
    return (
        lists
        and len(inputs) == len(targets) > 0
        and all(isinstance(target, Mapping) for target in targets)
    )


def batch_length(batch: Any) -> int | None:
    """Samples in the batch: the leading axis of its first tensor; None if it has no tensor.

    Raises
    ------
    InputError
        If that axis is empty.
    """
    if per_sample(batch):
        return len(batch[0])
    found = named_targets(batch)
    parts = (leaf for _, leaf in leaves(batch)) if found is None else (found,)
    for leaf in parts:
        if isinstance(leaf, Tensor) and leaf.dim():
            if leaf.shape[0] == 0:
                raise no_samples(batch)
            return int(leaf.shape[0])
    return None


def _understand_object(model: nn.Module, batch: Any) -> Call:
    """The call for an object with attributes: its arguments by name, or the object itself."""
    parameters = _parameters(model).values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = {p.name for p in parameters if p.name in names and p.default is p.empty}
    accepted = {name: getattr(batch, name, None) for name in names}
    known = {name: value for name, value in accepted.items() if value is not None}
    if required <= set(known) and not (len(required) == 1 and required <= set(_WHOLE)):
        return Call((), known, named_targets(batch))
    return Call((batch,), {}, named_targets(batch))


def _understand_dict(model: nn.Module, batch: dict[str, Any]) -> Call:
    arguments = _parameters(model)
    masks = [key for key in ("masks", "mask") if key in arguments]  # an input of that name
    named = next((key for key in KEYS if key in batch and key not in masks), None)
    args, kwargs = _keywords(model, batch, named)
    left = [key for key in batch if key not in kwargs] if kwargs else []
    if named is None and len(left) == 1:
        named = left[0]
    return Call(args, kwargs, None if named is None else batch[named])


def _keywords(
    model: nn.Module, inputs: dict[str, Any], targets: str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments from a dict; `targets` is the key that may be left out."""
    parameters = _parameters(model)
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return (), inputs
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind != parameter.VAR_POSITIONAL
    ]
    accepted = {key: value for key, value in inputs.items() if key in parameters}
    if accepted and set(required) <= set(accepted):
        return (), accepted
    others = [key for key in inputs if key != targets]
    if len(required) == 1 and not accepted:
        if required[0] in _WHOLE:
            return (inputs,), {}
        if len(others) == 1 and (targets is not None or len(inputs) == 1):
            return (inputs[others[0]],), {}
    problem = (
        f"batch: its keys {_words(inputs)} do not fit the arguments of "
        f"{type(model).__name__}.forward: {_words(parameters) or 'none'} ({seen(inputs)})"
    )
    taken = others[: max(len(required), 1)]
    call = f"model({', '.join(map(_item, taken))})"
    if targets is not None:
        raise hints.no_forward(problem, f"{call}  # its predictions")
    left = [key for key in others if key not in taken]
    raise hints.no_forward_and_step(problem, *(_guesses(call, _item(left[-1])) if left else ()))


def refuse_arguments(model: nn.Module, call: Call) -> None:
    """Raise an InputError if a model's `forward` does not take the arguments of a call."""
    parameters = list(_parameters(model).values())
    try:
        inspect.Signature(parameters).bind(*call.args, **call.kwargs)
    except TypeError as error:
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        outputs = f"model({', '.join(f'{name}=...' for name in names)})"
        name = type(_inner(model)).__name__
        raise hints.no_forward(
            f"batch: its inputs do not fit the arguments of {name}.forward: "
            f"{_words(names) or 'none'} ({error})",
            f"{outputs}  # each from batch",
        ) from None


def _item(key: str) -> str:
    return f'batch["{key}"]'


def _guesses(outputs: str, targets: str) -> tuple[str, str]:
    """Example code for the predictions and the loss."""
    indent = 12 * " "
    loss = f"torch.nn.functional.cross_entropy(\n{indent}    {outputs}, {targets}\n{indent})"
    return f"{outputs}  # its predictions", loss


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of the `forward` that the user wrote, inside any wrapper."""
    return inspect.signature(_inner(model).forward).parameters


def _inner(model: nn.Module) -> Any:
    inner: Any = uncompiled(model)
    while isinstance(inner, _WRAPPERS):
        inner = inner.module
    return inner


def _words(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)
