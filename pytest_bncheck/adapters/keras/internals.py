"""What Keras does not promise to keep: no other file of the adapter uses private names of Keras.

A name that a version of Keras lacks is None here, and `require` says so when a check starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters import versions
from pytest_bncheck.adapters.containers import container_type, members_of, refill

KerasLayer: TypeAlias = Any
Tensor: TypeAlias = Any
Variable: TypeAlias = Any

PATHS = (
    "keras.src.backend.common.global_state.get_global_attribute",
    "keras.src.backend.common.global_state.set_global_attribute",
    "keras.src.backend.common.masking.get_keras_mask",
    "keras.src.backend.common.masking.set_keras_mask",
    "keras.src.backend.common.stateless_scope.get_stateless_scope",
    "keras.src.backend.common.symbolic_scope.in_symbolic_scope",
    "keras.src.layers.layer.CallContext",
)
"""Functions and classes."""

(
    _get_global, _set_global, get_keras_mask, set_keras_mask, get_stateless_scope,
    in_symbolic_scope, CallContext,
) = map(versions.find, PATHS)  # fmt: skip

ATTRIBUTES = {
    "keras.Layer": (
        "_call_has_training_arg", "_clear_losses", "_flatten_layers", "_layers",
        "_metrics", "_non_trainable_variables", "_seed_generators", "_trainable_variables",
    ),
    "keras.Model": ("_compute_loss",),
    "a compiled keras.Model": ("_compile_loss", "_compile_metrics"),
    "the loss of a compiled keras.Model": ("_user_loss", "_user_loss_weights"),
    "keras.Variable": ("_value",),
}  # fmt: skip
"""Attributes and methods, by what has them."""

NOTES = {
    "_called", "_parent_path", "_losses", "_loss_ids", "_dropout_mask", "_recurrent_dropout_mask",
}  # fmt: skip
"""Attributes of layers in which Keras itself takes notes during a call."""

TRACKING = "_self_"
"""Beginning of the names of attributes in which TensorFlow lists what an object holds."""

PUBLIC = {"keras.src.random": "keras.random", "tensorflow.python.ops": "tf.random"}
"""Beginnings of the names of modules with random functions, and where users import these from."""

_SEED_GENERATOR = "global_seed_generator"
_LAYER_NAMES = "object_name_uids"
_CALL_CONTEXT = "current_call_ctx"
_GLOBALS = (
    _CALL_CONTEXT, "dtype_policy", "custom_objects_scope_dict", "flash_attention",
    "name_scope_stack", "remat_scope_stack", "safe_mode_saving",
)  # fmt: skip
_TRACKED_BY_TENSORFLOW = "tensorflow.python.trackable.data_structures"


def require(model: Any) -> None:
    """Refuse a version of Keras that lacks one of the names.

    Raises
    ------
    InputError
        With the names that are missing.
    """
    loss = compiled_loss(model) if model.compiled else None
    owners = (
        model,
        model,
        model if model.compiled else None,
        loss,
        next((v for v in model.variables if isinstance(v, keras.Variable)), None),
    )
    missing = [path for path in PATHS if versions.find(path) is None]
    missing += [
        f"{name} of {what}"
        for (what, names), owner in zip(ATTRIBUTES.items(), owners, strict=True)
        for name in names
        if owner is not None and not hasattr(owner, name)
    ]
    versions.require("Keras", keras.__version__, missing)


# layers -------------------------------------------------------------------------------------------


def has_value(variable: Any) -> bool:
    """Whether a variable has its value yet; some get it when their layer is built."""
    return getattr(variable, "_value", None) is not None


def flat_layers(layer: KerasLayer, *, include_self: bool = True) -> list[KerasLayer]:
    """All layers inside a layer or model, at any depth."""
    return list(layer._flatten_layers(include_self=include_self))


def inner_layers(layer: KerasLayer) -> list[KerasLayer]:
    """The layers directly inside a layer or model."""
    return layer._layers  # type: ignore[no-any-return]


def takes_mode(layer: KerasLayer) -> bool:
    """Whether ``call`` has a parameter ``training``."""
    return bool(layer._call_has_training_arg)


def seed_generators(layer: KerasLayer) -> list[Any]:
    """The random generators of the layer, without those of inner layers."""
    return layer._seed_generators  # type: ignore[no-any-return]


def draws(layer: KerasLayer) -> bool:
    """Whether a layer of Keras draws random numbers in training mode."""
    return bool(seed_generators(layer)) or hasattr(layer, "get_dropout_mask")


def trainable_variables(layer: KerasLayer) -> list[Variable]:
    """Variables of the layer made to be trained, frozen or not, without those of inner layers."""
    return layer._trainable_variables  # type: ignore[no-any-return]


def non_trainable_variables(layer: KerasLayer) -> list[Variable]:
    """Variables of the layer that no optimizer moves, without those of inner layers."""
    return layer._non_trainable_variables  # type: ignore[no-any-return]


def metrics_of(layer: KerasLayer) -> list[Any]:
    """The metrics of the layer, without those of inner layers."""
    return layer._metrics  # type: ignore[no-any-return]


def clear_losses(model: Any) -> None:
    """Forget the losses that layers added in the last call."""
    model._clear_losses()


def trackers(owners: list[Any]) -> list[Any]:
    """The objects in which these layers and optimizers list what they hold."""
    return [owner._tracker for owner in owners if hasattr(owner, "_tracker")]


def tracked_containers(value: Any) -> list[Any] | None:
    """What TensorFlow keeps of a list or dict in an attribute; None if it does not track it."""
    if type(value).__module__ != _TRACKED_BY_TENSORFLOW:
        return None
    return [getattr(value, "_storage", None), getattr(value, "__wrapped__", None), vars(value)]


# models, losses, optimizers -----------------------------------------------------------------------


def input_structure(model: Any) -> Any:
    """The symbolic inputs of a functional or sequential model, None for others."""
    functional = getattr(model, "_functional", None)  # of a sequential model, once it is built
    return getattr(functional or model, "_inputs_struct", None)


def compiled_loss(model: Any) -> Any:
    """The object that computes the loss given to ``compile``, None without one."""
    return getattr(model, "_compile_loss", None)


def compiled_parts(model: Any) -> list[Any]:
    """What ``compile`` made: the objects for the loss and for the metrics."""
    parts = (getattr(model, name, None) for name in ("_compile_loss", "_compile_metrics"))
    return [part for part in parts if part is not None]


def is_library_loss(loss: Any) -> bool:
    """Whether a compiled loss, or one that was given, is code of Keras."""
    function = None if loss is None else keras.losses.get(loss)
    return str(getattr(function, "__module__", "")).split(".")[0] == "keras"


def separate_loss(model: Any) -> Any:
    """The compiled loss again, without its metrics, which the model's own would update."""
    loss = compiled_loss(model)
    return type(loss)(loss._user_loss, loss._user_loss_weights, output_names=loss.output_names)


def overrides_compute_loss(model: Any) -> bool:
    """Whether a model has a ``compute_loss`` of its own."""
    return type(model).compute_loss is not keras.Model.compute_loss


def compute_loss(
    model: Any, inputs: Any, targets: Any, outputs: Any, weights: Any, *, training: bool
) -> Tensor:
    """The loss of a model that overrides ``compute_loss``."""
    return model._compute_loss(inputs, targets, outputs, weights, training=training)


def comes_from_logits(output: Tensor) -> bool:
    """Whether the tensor is the result of Keras' softmax or sigmoid, which leave a mark on it."""
    return hasattr(output, "_keras_logits")


def optimized_variables(optimizer: Any) -> list[Variable]:
    """The variables that an optimizer changes."""
    return list(getattr(optimizer, "_trainable_variables", ()))


def learning_rate(optimizer: Any) -> Any:
    """The learning rate or the schedule that an optimizer was made with."""
    return getattr(optimizer, "_learning_rate", None)


def uncast_value(variable: Variable) -> Tensor:
    """The tensor in a variable, whatever type autocasting would give it."""
    return variable._value


def set_value(variable: Variable, value: Any) -> None:
    """Let a variable hold another tensor of its backend."""
    variable._value = value


# state of the whole process -----------------------------------------------------------------------


def global_generator() -> Any:
    """The random generator of layers and functions without a seed; None before its first use."""
    return _get_global(_SEED_GENERATOR)


def remember_globals() -> Callable[[], None]:
    """Remember the open call and scopes, the counters of names and what is set for all.

    Returns the way back.
    """
    names = dict(_get_global(_LAYER_NAMES) or {})
    values = {name: _get_global(name) for name in _GLOBALS}
    scopes = [(held, members_of(held)) for held in values.values() if container_type(held)]

    def back() -> None:
        # An exception inside a model's call can leave the call open.
        for name, value in values.items():
            _set_global(name, value)
        for held, members in scopes:
            refill(held, members)
        now = _get_global(_LAYER_NAMES)
        if now is not None:
            now.clear()
            now.update(names)

    return back


def mode_around() -> bool | None:
    """The mode that the call going on hands to the layers inside; None without one."""
    context = _get_global(_CALL_CONTEXT) if _get_global is not None else None
    read = getattr(context, "get_value", lambda name: getattr(context, name, None))
    training: bool | None = read("training")
    return training


def is_symbolic() -> bool:
    """Whether layers are called for their shapes alone."""
    return in_symbolic_scope is not None and bool(in_symbolic_scope())


@contextlib.contextmanager
def inside_call(training: bool) -> Iterator[None]:
    """Let code run as if from a layer's ``call`` in this mode."""
    before = _get_global(_CALL_CONTEXT)
    context = CallContext(entry_layer=None)
    context.training = training
    _set_global(_CALL_CONTEXT, context)
    try:
        yield
    finally:
        _set_global(_CALL_CONTEXT, before)


@contextlib.contextmanager
def noting_draws(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` from inside each draw of any random generator of Keras, by class-wide patches."""
    generator: Any = keras.random.SeedGenerator
    draw, make = generator.next, generator.__init__

    def noted_draw(seed: Any, *args: Any, **kwargs: Any) -> Any:
        note()
        return draw(seed, *args, **kwargs)

    def noted_make(seed: Any, *args: Any, **kwargs: Any) -> None:  # draws its seed from Python
        note()
        make(seed, *args, **kwargs)

    generator.next, generator.__init__ = noted_draw, noted_make
    try:
        yield
    finally:
        generator.next, generator.__init__ = draw, make
