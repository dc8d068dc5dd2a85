"""Loss and accuracy of a Keras model on a batch: the user's, the compiled one, or inferred."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.batches import axis_of_samples
from pytest_bncheck.adapters.hints import kind, seen
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import tensor_like, to_numpy
from pytest_bncheck.adapters.keras.batch import Batch
from pytest_bncheck.adapters.keras.hints import hints
from pytest_bncheck.adapters.keras.internals import get_keras_mask, set_keras_mask
from pytest_bncheck.adapters.keras.subject import Subject
from pytest_bncheck.adapters.refusals import no_such_label
from pytest_bncheck.adapters.targets import is_binary, is_one_hot, wrong_label
from pytest_bncheck.types import InputError

Tensor: TypeAlias = Any
Host: TypeAlias = "np.ndarray[Any, Any]"

_REGRESSIONS = {
    "meansquarederror", "meanabsoluteerror", "meanabsolutepercentageerror",
    "meansquaredlogarithmicerror", "huber", "logcosh", "poisson", "cosinesimilarity",
}  # fmt: skip
_ABBREVIATIONS = {"mse", "mae", "mape", "msle"}
_OF_CLASSES = ("crossentropy", "hinge", "ctc", "dice", "tversky")

PRECISION = 0.02
"""Largest relative difference of one loss that is computed in two ways."""


@dataclass(frozen=True)
class Match:
    """How targets fit outputs.

    Attributes
    ----------
    kind
        Class indices, rows with a single one, zeros and ones on one column, or real values.
    targets
        In the shape that the loss needs.
    """

    kind: Literal["indices", "one-hot", "binary", "values"]
    targets: Host


def match(shape: tuple[int, ...], targets: Host) -> Match:
    """What targets are, by their dtype, their shape and that of the outputs.

    Raises
    ------
    InputError
        If they do not fit.
    """
    columns = shape[-1] if len(shape) > 1 else 1
    integer = targets.dtype.kind in "iub"
    if columns == 1:
        rows = shape[:-1] if len(shape) > 1 else shape
        if targets.shape in (rows, (*rows, 1)):
            if is_binary(targets):
                return Match("binary", targets.reshape(shape))
            if not integer:
                return Match("values", targets.reshape(shape))
            _check_labels(targets, 1)
    else:
        if integer and targets.shape in (shape[:-1], (*shape[:-1], 1)):
            _check_labels(targets, columns)
            return Match("indices", targets.reshape(shape[:-1]))
        if targets.shape == shape:
            if is_one_hot(targets, axis=-1):
                return Match("one-hot", targets)
            if not integer:
                return Match("values", targets)
    raise hints.no_loss(
        f"loss: it cannot be inferred; the model's output has shape {shape}, the batch's targets "
        f"have shape {targets.shape} and type {targets.dtype}; class indices are integers of "
        f"shape {shape[:-1]}, everything else has the output's shape"
    )


def _check_labels(labels: Host, classes: int) -> None:
    wrong = wrong_label(labels, max(classes, 2))
    if wrong is not None:
        raise InputError(no_such_label(wrong, classes))


def only_leaf(structure: Any) -> Tensor | None:
    """The tensor of a structure that contains a single one, else None."""
    leaves = keras.tree.flatten(structure)
    return leaves[0] if len(leaves) == 1 and hasattr(leaves[0], "shape") else None


def _outputs_first(loss: Any) -> Any:
    """The user's loss as a function of outputs and targets; Keras' own take the targets first."""
    if isinstance(loss, keras.losses.Loss) or internals.is_library_loss(loss):
        return lambda outputs, targets: keras.ops.mean(loss(targets, outputs))
    return loss


class Criterion:
    """Loss and accuracy of one model.

    Parameters
    ----------
    subject
        The model, and the user's loss.

    Attributes
    ----------
    last_layer
        The layer that ran last in a forward pass; its activation decides whether the outputs are
        probabilities or logits.
    of_classes
        Whether the loss is a classification's; None while unknown.
    """

    def __init__(self, subject: Subject) -> None:
        self._model, self._backend = subject.model, subject.backend
        self._user_loss = _outputs_first(subject.recipe.loss)
        self._compiled: Any = None
        self._checked: dict[int, Any] = {}
        self._jitted: Any = None
        self._matches: dict[int, tuple[Tensor, tuple[int, ...], Match]] = {}
        self._probabilities: bool | None = None
        self._form: tuple[str, int] | None = None
        self.of_classes: bool | None = None
        self.last_layer: Any = None

    def learn_from(self, outputs: Any, batch: Batch) -> None:
        """Decide from real outputs what those of a trace do not show."""
        output = only_leaf(outputs)
        if output is not None:
            self._gives_probabilities(output)
        if self._user_loss is None:
            with contextlib.suppress(Exception):  # the user's step may need none of these losses
                self.loss(outputs, batch)

    def losses(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss on the data, and the same with penalties and added losses: what is trained on."""
        __tracebackhide__ = True
        if self._user_loss is None and internals.overrides_compute_loss(self._model):
            total = scalar(
                internals.compute_loss(
                    self._model,
                    batch.inputs,
                    batch.targets,
                    outputs,
                    batch.weights,
                    training=True,
                )
            )
            return total, total
        if batch.targets is None and self._user_loss is None and self._model.losses:
            total = scalar(sum(self._model.losses))  # what layers added is all that is trained
            return total, total
        loss = self.loss(outputs, batch)
        self._form = self._form or self._form_of(outputs, batch.targets)
        extra = [keras.ops.sum(keras.ops.cast(x, loss.dtype)) for x in self._model.losses]
        return loss, loss + sum(extra) if extra else loss

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Loss on the data; the user's loss gets no sample weights.

        Raises
        ------
        InputError
            If there is none, or the targets do not fit.
        """
        __tracebackhide__ = True
        targets = batch.targets
        if self._user_loss is not None:
            return scalar(self._user_loss(outputs, targets))
        if internals.overrides_compute_loss(self._model):
            arguments = batch.inputs, targets, outputs, batch.weights
            return scalar(internals.compute_loss(self._model, *arguments, training=False))
        if targets is None:
            raise hints.no_step(
                "loss: none was given, and the batch holds no targets to infer it from; "
                f"the outputs are {_in_words(outputs)}"
            )
        if internals.compiled_loss(self._model) is not None:
            return self._compiled_loss(outputs, targets, batch.weights)
        return self._inferred_loss(outputs, targets, batch.weights)

    def accuracy(self, outputs: Any, targets: Any) -> float | None:
        """Share of right decisions; None if the targets or the loss are not of classes."""
        output, target = only_leaf(outputs), only_leaf(targets)
        if output is None or target is None or self.of_classes is False:
            return None
        try:
            matched = self._match(output, target)
        except InputError:
            return None
        if matched.kind == "values":
            return None
        scores = _host(output).astype(np.float64)
        if matched.kind == "binary":
            threshold = 0.5 if self._gives_probabilities(output) else 0.0
            right = (scores > threshold) == matched.targets
        else:
            targets = matched.targets
            labels = targets if matched.kind == "indices" else targets.argmax(axis=-1)
            right = scores.argmax(axis=-1) == labels
        mask = get_keras_mask(output)
        if mask is not None and tuple(mask.shape) == right.shape:
            right = right[_host(mask).astype(bool)]  # no loss trains what is padding
        return float(right.mean())

    def decide(self, loss: float, outputs: Any, targets: Any, *, own_step: bool) -> None:
        """Whether the loss is a classification's: by its name, or as their cross-entropy.

        Parameters
        ----------
        loss
            Of these outputs and targets.
        own_step
            Whether the user's step trains on a loss that nobody else knows; it is asked about by
            `decide_by`.
        """
        compiled = self._single_compiled() is not None
        if own_step and not compiled:
            return
        given = self._user_loss is not None
        if self.of_classes is None and not (
            given or compiled or internals.overrides_compute_loss(self._model)
        ):
            self.of_classes = True
        self.decide_by(loss, outputs, targets)

    def decide_by(self, loss: float, outputs: Any, targets: Any) -> None:
        """Whether the compiled loss says so, or a loss is the cross-entropy of these outputs."""
        if self.of_classes is None:
            self.of_classes = self._of_classes_by_name()
        if self.of_classes is not None:
            return
        try:
            entropy = float(self._inferred_loss(outputs, targets, None))
            matched = self._match(only_leaf(outputs), only_leaf(targets))
        except Exception:  # nothing that a cross-entropy could be of
            self.of_classes = False
            return
        alike = math.isclose(loss, entropy, rel_tol=PRECISION) or math.isnan(loss + entropy)
        self.of_classes = matched.kind != "values" and alike

    def constant_loss(self, outputs: Any, batch: Batch) -> float | None:
        """Loss of answering every sample with the mean output; None if it cannot be computed."""
        leaves = keras.tree.flatten(outputs)
        axes = [_axis_of_samples(leaf, batch) for leaf in leaves]
        if not leaves or None in axes:
            return None
        pairs = [(leaf, axis) for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]
        try:
            means = keras.tree.pack_sequence_as(outputs, [_mean(*pair) for pair in pairs])
            return float(self.loss(means, batch))
        except Exception:  # the user's loss may accept only real outputs
            return None

    # the three sources ------------------------------------------------------------------------

    def _compiled_loss(self, outputs: Any, targets: Any, weights: Any) -> Tensor:
        __tracebackhide__ = True
        if self._compiled is None:
            self._compiled = internals.separate_loss(self._model)
            self._jitted = self._backend.jitted(self._compiled)
        output, target, single = only_leaf(outputs), only_leaf(targets), self._single_compiled()
        if output is not None and target is not None and "sparse" in _name(single):
            self._check_targets(output, target, single)
        alone = output is outputs and target is targets and get_keras_mask(output) is None
        library = internals.is_library_loss(single)
        pure = alone and library and self._backend.concrete(output) is output
        try:
            return scalar((self._jitted if pure else self._compiled)(targets, outputs, weights))
        except Exception as error:
            if not library:
                raise
            raise hints.no_loss(
                f"loss: {_title(single)}, which the model is compiled with, does not fit "
                f"the outputs ({seen(outputs, 'outputs')}) and targets "
                f"({seen(targets, 'targets')})",
                outputs,
                targets,
            ) from error

    def _check_targets(self, output: Tensor, target: Any, single: Any) -> None:
        """Raise an InputError for a label out of range; targets are fetched once."""
        if id(target) in self._checked:
            return
        ignored = getattr(single, "ignore_class", None)
        labels = _host(target)
        labels = labels if ignored is None else labels[labels != ignored]
        _check_labels(labels, output.shape[getattr(single, "axis", -1)])
        self._checked[id(target)] = target

    def _inferred_loss(self, outputs: Any, targets: Any, weights: Any) -> Tensor:
        output, target = only_leaf(outputs), only_leaf(targets)
        if output is None or target is None:
            if not any(map(keras.ops.is_tensor, keras.tree.flatten(outputs))):
                raise hints.no_forward(f"outputs: {_in_words(outputs)} holds no tensor")
            raise hints.no_loss(
                "loss: none was given and it cannot be inferred from outputs, "
                f"{_in_words(outputs)}, and targets, {_in_words(targets)}; one array each would do",
                outputs,
                targets,
            )
        if not keras.backend.is_float_dtype(output.dtype):
            raise hints.no_loss(f"loss: none fits outputs of type {output.dtype}")
        matched = self._match(output, target)
        form = self._form_of(outputs, targets)
        if self._form not in (None, form):  # one mode decides, the other gives what decides
            raise hints.no_loss(f"loss: it fits {self._form}, and not {form}")
        from_logits = matched.kind != "values" and not self._gives_probabilities(output)
        loss: Any
        if matched.kind == "indices":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        elif matched.kind == "one-hot":
            loss = keras.losses.CategoricalCrossentropy(from_logits=from_logits)
        elif matched.kind == "binary":
            loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        else:
            loss = keras.losses.MeanSquaredError()
        return loss(matched.targets, output, sample_weight=weights)

    # what outputs and targets are ------------------------------------------------------------

    def _form_of(self, outputs: Any, targets: Any) -> tuple[str, int] | None:
        """What the targets are for these outputs, and the number of columns; None without one."""
        output, target = only_leaf(outputs), only_leaf(targets)
        if output is None or target is None:
            return None
        try:
            matched = self._match(output, target)
        except Exception:  # another loss than an inferred one
            return None
        return matched.kind, output.shape[-1] if len(output.shape) > 1 else 1

    def _match(self, output: Tensor, target: Tensor) -> Match:
        shape = tuple(output.shape)
        known = self._matches.get(id(target))
        if known is None or known[0] is not target or known[1] != shape:
            known = target, shape, match(shape, _host(target))
            self._matches[id(target)] = known
        return known[2]

    def _gives_probabilities(self, output: Tensor) -> bool:
        """Whether the outputs are those of softmax or sigmoid; decided on the first real output."""
        if self._probabilities is None:
            single = self._single_compiled()
            if "crossentropy" in _name(single) and self._user_loss is None:
                self._probabilities = not getattr(single, "from_logits", False)
            else:
                squashed = internals.comes_from_logits(output)
                self._probabilities = squashed or _squashes(self.last_layer)
            columns = output.shape[-1] if len(output.shape) > 1 else 1
            if not self._probabilities and single is None and columns > 1:
                # Rows sum to one only by design; values of one column can be in [0, 1] by chance.
                rows = _host(output).astype(np.float64)
                self._probabilities = bool(
                    (rows >= 0).all() and np.allclose(rows.sum(axis=-1), 1.0, atol=1e-2)
                )
        return self._probabilities

    def _single_compiled(self) -> Any:
        """The loss given to ``compile`` if it is a single one, else None."""
        loss = getattr(self._model, "loss", None) if self._user_loss is None else None
        leaves = keras.tree.flatten(loss)
        return leaves[0] if len(leaves) == 1 else None

    def _of_classes_by_name(self) -> bool | None:
        """Whether the compiled loss is a classification's; None if its name does not say."""
        single = self._single_compiled()
        if single is None or internals.overrides_compute_loss(self._model):
            return None
        name = _name(single)
        if any(each in name for each in _OF_CLASSES):
            return True
        return False if name in _REGRESSIONS or name in _ABBREVIATIONS else None


def scalar(loss: Any) -> Tensor:
    """A loss as a scalar tensor, with its gradient.

    Raises
    ------
    InputError
        If it is no number or tensor.
    """
    if loss is None or isinstance(loss, (str, dict)):
        raise hints.no_loss(
            "loss: expected one number that depends on the model's parameters, a tensor with a "
            f"gradient; got {kind(loss)}"
        )
    value = keras.ops.convert_to_tensor(loss)
    return keras.ops.mean(value) if value.shape else value


def _in_words(value: Any) -> str:
    if not keras.ops.is_tensor(value):
        return kind(value)
    return f"a tensor of shape {tuple(value.shape)}"


def _axis_of_samples(output: Any, batch: Batch) -> int | None:
    """The axis along which an output holds numbers for each sample; None if it holds none."""
    shape = tuple(getattr(output, "shape", ()))
    if not shape or not keras.backend.is_float_dtype(output.dtype):
        return None
    return axis_of_samples(shape, batch.sizes)


def _mean(output: Tensor, axis: int) -> Tensor:
    """The mean over the samples, for each of them."""
    # On the host: elsewhere the mean and its copies could be a program each to compile.
    host = _host(output)
    same = host.mean(axis=axis, keepdims=True, dtype=np.float64).astype(host.dtype)
    mean = tensor_like(np.broadcast_to(same, host.shape), output)
    set_keras_mask(mean, get_keras_mask(output))
    return mean


def _host(tensor: Tensor) -> Host:
    array: Host = to_numpy(tensor)
    return array


def _name(loss: Any) -> str:
    """Name of a loss without case and underscores: ``sparsecategoricalcrossentropy``."""
    return _title(loss).lower().replace("_", "")


def _title(loss: Any) -> str:
    """Name of a loss as the user wrote it."""
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)


def _squashes(layer: Any) -> bool:
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    return isinstance(layer, keras.layers.Softmax) or activation in ("softmax", "sigmoid")
