"""Which loss a PyTorch model and its targets ask for, and what accuracy means for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bncheck.adapters.hints import kind as in_words
from pytest_bncheck.adapters.refusals import no_such_label
from pytest_bncheck.adapters.targets import is_binary, is_one_hot, wrong_label
from pytest_bncheck.adapters.torch.data import dtype_name, leaves, widest
from pytest_bncheck.adapters.torch.hints import hints
from pytest_bncheck.adapters.torch.internals import last_operation
from pytest_bncheck.maths.predictions import achieved
from pytest_bncheck.types import InputError

Loss = Callable[[Any, Any], Any]

IGNORED = -100
"""The class index that torch's cross-entropy leaves out."""

PRECISION = 0.02
"""Largest relative difference of one loss computed in two precisions."""

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


class Criterion:
    """The loss: the user's, or one inferred from outputs and targets.

    Parameters
    ----------
    loss
        The user's, or None to infer it from the first outputs.

    Attributes
    ----------
    loss
        None while unknown.
    operation
        `last_operation` of the outputs; None before the first outputs.
    of_classes
        Whether the loss is a classification's; None while unknown.
    sees_targets
        Whether the model gets the targets, so that the only number among its outputs is its loss.
    """

    def __init__(self, loss: Loss | None) -> None:
        self.loss = loss
        self.sees_targets = False
        self.operation: str | None = None
        self.of_classes: bool | None = None

    @property
    def decided(self) -> bool:
        """Whether nothing is left to be asked of the autograd graph of the outputs."""
        return self.of_classes is not None

    def __call__(self, outputs: Any, targets: Any) -> Any:
        """The loss; with gradients on if it is still to be inferred.

        None where a model computes its loss in training mode only.

        Raises
        ------
        InputError
            If it cannot be inferred.
        """
        __tracebackhide__ = True
        output = main_output(outputs)
        if self.operation is None and isinstance(output, Tensor) and output.grad_fn is not None:
            self.operation = last_operation(output)
        if self.loss is None:
            self.loss = self.own(outputs) or infer(outputs, targets)
        loss = self.loss(outputs, targets)
        if self.of_classes is None and loss is not None:
            self.of_classes = isinstance(self.loss, _OF_CLASSES) or self._agrees(
                loss, output, targets
            )
        return loss

    def own(self, outputs: Any) -> Loss | None:
        """The loss that a model computed itself and returned with its outputs, or None."""
        if own_loss(outputs) is not None:
            return lambda out, _: own_loss(out)
        if self.sees_targets and _only_number(outputs) is not None:
            return lambda out, _: _only_number(out)
        return None

    def decide(self, kind: str | None, columns: int | None = None) -> None:
        """Infer the loss from outputs of this kind, or leave it unknown if None.

        With `columns`, outputs of another number of columns have no loss.
        """
        if self.loss is None and kind is not None:
            self.loss = like(kind, columns)
        self.operation = self.operation or kind
        if self.loss is None:
            self.of_classes = False

    def accuracy(self, outputs: Any, targets: Any) -> float | None:
        """Share of right decisions in [0, 1]; None where the loss is no classification's."""
        return accuracy(outputs, targets, self.operation) if self.of_classes else None

    def _agrees(self, loss: Any, output: Any, targets: Any) -> bool:
        """Whether a loss is the cross-entropy of this output and these targets."""
        if not isinstance(output, Tensor) or not isinstance(targets, Tensor):
            return False
        if isinstance(loss, Tensor) and loss.numel() != 1:
            return False
        kind = self.operation or "logits"
        try:
            with torch.no_grad():
                entropy = cross_entropy(output, targets, kind)
                expected = math.nan if entropy is None else float(entropy(output, targets))
                value = float(loss)
        except Exception:  # nothing that a cross-entropy could be of
            return False
        return entropy is not None and _close(value, expected)


def own_loss(outputs: Any) -> Any:
    """What a model returned as its ``loss``, or None."""
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    return getattr(outputs, "loss", None)


def _only_number(outputs: Any) -> Tensor | None:
    """The only number in a tuple of other tensors, or None."""
    if not isinstance(outputs, (tuple, list)):
        return None
    tensors = [each for each in outputs if isinstance(each, Tensor)]
    numbers = [each for each in tensors if each.is_floating_point() and not each.dim()]
    return numbers[0] if len(numbers) == 1 < len(tensors) else None


def main_output(outputs: Any) -> Any:
    """The tensor that a loss looks at.

    The output itself, its ``logits`` or ``out``, the first of a tuple or list, or the only tensor
    in another container; otherwise the outputs unchanged.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for key in ("logits", "out"):
        value = outputs.get(key) if isinstance(outputs, Mapping) else getattr(outputs, key, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        return next((o for o in outputs if isinstance(o, Tensor) and o.dim()), outputs[0])
    tensors = [leaf for _, leaf in leaves(outputs) if isinstance(leaf, Tensor) and leaf.dim()]
    return tensors[0] if len(tensors) == 1 else outputs


def infer(outputs: Any, targets: Any, kind: str | None = None) -> Loss:
    """The loss for these outputs and targets.

    Without `kind`, `last_operation` decides, which needs outputs computed with gradients on.

    Raises
    ------
    InputError
        If none fits the targets, or a label is out of range.
    """
    if own_loss(outputs) is not None:
        return lambda out, _: own_loss(out)
    output = main_output(outputs)
    if not isinstance(output, Tensor) or not isinstance(targets, Tensor):
        raise _unclear(outputs, targets)
    if not output.is_floating_point() or output.layout is not torch.strided:
        raise _unclear(outputs, targets)
    if classes(output, targets):
        check_labels(output, targets)
    entropy = cross_entropy(output, targets, kind or last_operation(output))
    if entropy is not None:
        return entropy
    if targets.shape == output.shape and targets.is_floating_point():
        return _of_labels if _are_trained_logits(output, targets) else _squared_error
    raise _unclear(outputs, targets)


def like(kind: str, columns: int | None = None) -> Loss:
    """The loss that outputs of a known kind suggest, inferred at each call.

    The kind may come from a part's output, and the model may return something of another form.
    With another number of columns it has no loss.
    """

    def loss(outputs: Any, targets: Any) -> Any:
        if columns is not None and columns_of(main_output(outputs)) != columns:
            raise _unclear(outputs, targets)
        return infer(outputs, targets, kind)(outputs, targets)

    return loss


def columns_of(output: Any) -> int | None:
    """Length of the axis of classes; None for what is no tensor."""
    if not isinstance(output, Tensor):
        return None
    return output.shape[1] if output.dim() > 1 else 1


def cross_entropy(output: Tensor, targets: Tensor, kind: str) -> Loss | None:
    """The cross-entropy of outputs of this kind, or None if the targets are no classes of it."""
    if classes(output, targets):
        if _wrong_label(output, targets) is not None:
            return None
        return lambda out, to: _cross_entropy(main_output(out), to, kind)
    if targets.shape == output.shape and _is_one_hot(targets):
        return lambda out, to: _cross_entropy(main_output(out), to.argmax(dim=1), kind)
    if _fits_one_column(output, targets) and is_binary(targets):
        entropy = (
            functional.binary_cross_entropy
            if kind == "sigmoid"
            else functional.binary_cross_entropy_with_logits
        )
        return lambda out, to: entropy(main_output(out), _like(main_output(out), to))
    return None


def accuracy(outputs: Any, targets: Any, kind: str | None) -> float | None:
    """Share of right decisions in [0, 1]; None where the targets are not classes.

    `kind` is what `last_operation` gave, None if unknown; outputs of one column need it.
    """
    output = main_output(outputs)
    if not isinstance(output, Tensor) or not isinstance(targets, Tensor):
        return None
    if not output.is_floating_point():  # decisions already, as in eval mode some models return
        if output.shape != targets.shape or targets.is_floating_point():
            return None
        right = (output == targets)[targets != IGNORED]
    elif classes(output, targets):
        if _wrong_label(output, targets) is not None:
            return None
        counted = targets != IGNORED
        right = (output.argmax(dim=1) == targets)[counted]
    elif targets.shape == output.shape and _is_one_hot(targets):
        right = output.argmax(dim=1) == targets.argmax(dim=1)
    elif kind and _fits_one_column(output, targets):
        if not is_binary(targets):
            return None
        threshold = 0.5 if kind == "sigmoid" else 0.0
        right = (output > threshold) == (targets.reshape(output.shape) > 0.5)
    else:
        return None
    return right.sum().item() / right.numel() if right.numel() else None


def classes(output: Tensor, targets: Tensor) -> bool:
    """Whether targets of shape (N, ...) are class indices for outputs of shape (N, C, ...)."""
    return (
        output.dim() >= 2
        and output.shape[1] >= 2
        and not targets.is_floating_point()
        and targets.dtype != torch.bool
        and targets.shape == (output.shape[0], *output.shape[2:])
    )


def check_labels(output: Tensor, targets: Tensor) -> None:
    """Raise an InputError if a class index has no output."""
    if not (targets != IGNORED).any():
        raise InputError(
            f"the batch's targets are {IGNORED} throughout, which cross-entropy leaves out; "
            "at least one label is needed"
        )
    wrong = _wrong_label(output, targets)
    if wrong is not None:
        raise InputError(no_such_label(wrong, output.shape[1]))


def _wrong_label(output: Tensor, targets: Tensor) -> int | None:
    """The first class index that counts and has no output."""
    return wrong_label(targets[targets != IGNORED], output.shape[1])


def _close(value: float, expected: float) -> bool:
    both_nan = math.isnan(value) and math.isnan(expected)
    return both_nan or math.isclose(value, expected, rel_tol=PRECISION)


def _cross_entropy(output: Tensor, labels: Tensor, kind: str) -> Tensor:
    labels = labels.long()  # torch's losses take no other integers
    if kind == "log_softmax":
        return functional.nll_loss(output, labels)
    if kind == "softmax":
        return functional.nll_loss(output.clamp_min(1e-12).log(), labels)
    return functional.cross_entropy(output, labels)


def _squared_error(outputs: Any, targets: Tensor) -> Tensor:
    output = main_output(outputs)
    if output.shape != targets.shape:
        raise _unclear(outputs, targets)
    return functional.mse_loss(output, targets)


def _of_labels(outputs: Any, targets: Tensor) -> Tensor:
    output = main_output(outputs)
    return functional.binary_cross_entropy_with_logits(output, _like(output, targets))


def _are_trained_logits(output: Tensor, targets: Tensor) -> bool:
    """Whether outputs are logits of several labels each, by what a training made of them.

    As values they are worse than a constant; as logits they are better by a tenth, which those of
    an untrained net never are.
    """
    if not is_binary(targets) or not output.is_floating_point():
        return False
    with torch.no_grad():
        wide = widest(output.device)
        output, targets = output.detach().to(wide), targets.to(wide)
        rate = targets.mean(dim=0, keepdim=True).expand_as(targets)
        if functional.mse_loss(output, targets) <= functional.mse_loss(rate, targets):
            return False
        guess = functional.binary_cross_entropy(rate, targets)
        entropy = functional.binary_cross_entropy_with_logits(output, targets)
        return bool(achieved(guess.item(), entropy.item()))


def _like(output: Tensor, targets: Tensor) -> Tensor:
    """Targets in the shape and dtype of the outputs."""
    return targets.reshape(output.shape).to(output.dtype)


def _is_one_column(output: Tensor) -> bool:
    """Whether an output is one number for each sample, or for each place of one: a mask."""
    return output.dim() == 1 or (output.dim() > 1 and output.shape[1] == 1)


def _fits_one_column(output: Tensor, targets: Tensor) -> bool:
    return _is_one_column(output) and targets.numel() == output.numel()


def _is_one_hot(targets: Tensor) -> bool:
    return targets.dim() >= 2 and targets.shape[1] >= 2 and is_one_hot(targets, axis=1)


def _unclear(outputs: Any, targets: Any) -> InputError:
    tensors = [leaf for _, leaf in leaves(outputs) if isinstance(leaf, Tensor)]
    if not tensors:
        return hints.no_forward(f"outputs: {_describe(outputs)} holds no tensor")
    if isinstance(outputs, Mapping) and not any(leaf.dim() for leaf in tensors):
        keys = ", ".join(f'"{key}"' for key in outputs)
        return hints.no_step(
            f"outputs: in training mode the model returns losses ({keys}) and no predictions",
            "sum(model(*batch).values())",
        )
    if targets is None:
        return hints.no_step(
            "loss: none was given, and the batch holds no targets to infer it from; "
            f"the outputs are {_describe(outputs)}"
        )
    return hints.no_loss(
        "loss: none was given and it cannot be inferred from outputs, "
        f"{_describe(outputs)}, and targets, {_describe(targets)}",
        outputs,
        targets,
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} ({dtype_name(value.dtype)})"
    return in_words(value)
