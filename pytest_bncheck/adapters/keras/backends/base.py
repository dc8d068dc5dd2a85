"""What the Keras adapter needs from a backend besides Keras.

Keras 3 leaves gradients, eager random numbers and the place of variables to its backend. Each
backend has a file with a class that answers the same questions.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.keras.internals import in_symbolic_scope
from pytest_bncheck.adapters.undo import Undo
from pytest_bncheck.types import InputError

Tensor: TypeAlias = Any
Variable: TypeAlias = Any
Losses: TypeAlias = Callable[[], tuple[Any, Tensor]]

_CLASSES = {"tensorflow": "TensorFlow", "torch": "Torch", "jax": "Jax"}


def own_backend() -> Backend:
    """The backend that Keras runs on.

    Raises
    ------
    InputError
        If it cannot train, or its version is not supported.
    """
    name = keras.backend.backend()
    if name not in _CLASSES:
        raise InputError(
            f"Keras on the {name} backend is not supported; "
            f"set KERAS_BACKEND to one of {', '.join(_CLASSES)}"
        )
    import_module(f"{__package__}.{name}_internals").require()
    module = import_module(f"{__package__}.{name}")
    return getattr(module, _CLASSES[name])()  # type: ignore[no-any-return]


def to_numpy(tensor: Tensor) -> Any:
    """A tensor as an array on the host; it may share the tensor's memory."""
    if isinstance(tensor, np.ndarray) or not hasattr(tensor, "detach"):
        return keras.ops.convert_to_numpy(tensor)
    # The function of Keras warns here since numpy 2.4: torch's __array__ takes no copy=.
    tensor = tensor.detach().cpu()
    return (
        tensor.float() if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16" else tensor
    ).numpy()


def tensor_like(array: Any, tensor: Tensor) -> Tensor:
    """An array as a tensor with the dtype of another."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.ops.convert_to_tensor(array, dtype=dtype)


def split(packed: Tensor, like: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Undo `Backend.pack`: flat float64 arrays, as large as the tensors in `like`."""
    ends = np.cumsum([math.prod(each.shape) for each in like])
    return np.split(to_numpy(packed).astype(np.float64), ends[:-1])


def wide_type(tensors: Sequence[Tensor]) -> str:
    """The dtype that holds the values of all floating tensors exactly."""
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in tensors}
    return "float64" if "float64" in dtypes else "float32"


class Loose:
    """A tensor in a container or in the attributes of an object, by its place.

    It has the few members of a variable of Keras that the adapter uses. Code may put another
    tensor there at any time.
    """

    def __init__(self, holder: Any, key: Any) -> None:
        self._holder, self._key = holder, key
        self._first = holder[key]
        self.shape = self._first.shape

    @property
    def value(self) -> Tensor:
        """The tensor that is there now; the first one where there is none any more."""
        try:
            now = self._holder[self._key]
        except LookupError:
            return self._first
        return now if hasattr(now, "shape") else self._first

    @property
    def dtype(self) -> str:
        """Its type's name."""
        return keras.backend.standardize_dtype(self._first.dtype)  # type: ignore[no-any-return]

    def assign(self, value: Tensor) -> None:
        """Put a tensor there."""
        self._put(keras.ops.cast(value, self.dtype))

    def _put(self, value: Tensor) -> None:
        self._holder[self._key] = value


class Backend(ABC):
    """One backend.

    Attributes
    ----------
    name
        The name in Keras.
    compilation
        The name for a compiled step in reports, None if steps are not compiled.
    compiles_passes
        Whether even a single forward pass is quicker compiled.
    steps_to_pay
        From this many steps on, compiling pays for itself.
    drops_trainable
        Whether Keras drops what a forward assigns to trainable variables.
    """

    name: str
    compilation: str | None = None
    compiles_passes: bool = False
    steps_to_pay: int = 0
    drops_trainable: bool = False

    # devices ----------------------------------------------------------------------------------

    @abstractmethod
    def devices(self, wish: str = "") -> list[str]:
        """The devices of this machine: ``["cpu", "gpu:0"]``; `wish` is the name asked for."""

    @abstractmethod
    def device_of(self, variables: Sequence[Variable]) -> str:
        """The device of a model with these variables; without any, that of new ones."""

    def on(self, device: str) -> contextlib.AbstractContextManager[Any]:
        """Make tensors and compute on a device."""
        return keras.device(device)  # type: ignore[no-any-return]

    @abstractmethod
    def move(self, variables: Sequence[Variable], device: str) -> Callable[[], None]:
        """Move variables to a device; returns the way back, which keeps their new values."""

    def replicas_of(self, value: Tensor) -> tuple[Any, ...]:
        """What a variable holds in each replica of a distribution strategy."""
        return (value,)

    def keep(self, layers: Sequence[Any], variables: Sequence[Variable]) -> Callable[[], None]:
        """Remember the state of layers and variables that only the backend knows.

        Returns the way back.
        """
        return lambda: None

    walked: tuple[type, ...] = ()
    """Classes of the backend whose objects hold state in their attributes."""

    def remember(self, item: object) -> Undo | None:
        """How to put back a variable, tensor or generator of the backend; None for others."""
        return None

    def not_put_back(self, item: object) -> str | None:
        """The kind of an object of the backend that cannot be put back; None for all others."""
        return None

    def flags(self) -> Callable[[], None]:
        """Remember the backend's settings of the whole process; returns the way back."""
        return lambda: None

    # values -----------------------------------------------------------------------------------

    def eager(self) -> bool:
        """Whether code computes values, and is not only traced or run for shapes."""
        return not in_symbolic_scope()

    @abstractmethod
    def copy(self, variable: Variable) -> Tensor:
        """A copy of the value."""

    @abstractmethod
    def change(self, variables: Sequence[Variable]) -> Callable[[], bool]:
        """A function that returns whether the variables changed since this call."""

    @abstractmethod
    def loose(self, holder: Any, key: Any) -> Variable | None:
        """A tensor or variable of the backend in a container or a `vars`; None if it is none."""

    def buffers(self, layer: Any) -> Iterator[tuple[Any, str, str, Variable]]:
        """The buffers of a layer that is a module of the backend, and of the modules inside it.

        Each with the module, its path in the layer, and the buffer's name.
        """
        return iter(())

    def untracked_seeds(self, value: object) -> list[Variable]:
        """States of the random generators in a layer's attribute that Keras does not track."""
        return []

    # running ----------------------------------------------------------------------------------

    def call(self, model: Any, inputs: Any, **mode: bool) -> Any:
        """Call the model as ``fit`` and ``predict`` do."""
        __tracebackhide__ = True
        return model(inputs, **mode)

    @abstractmethod
    def gradients(
        self, losses: Losses, variables: Sequence[Variable]
    ) -> tuple[Any, list[Tensor | None]]:
        """Call `losses` and differentiate the second value that it returns.

        Assignments to variables take effect.

        Returns
        -------
        pair
            The first value, any structure of tensors; and the derivative by each variable, None
            where the second value does not depend on it.
        """

    def concrete(self, tensor: Tensor) -> Tensor | None:
        """A tensor without its tracer; None for a symbolic one, which has no value yet."""
        return tensor

    def apply(
        self, optimizer: Any, gradients: Sequence[Tensor | None], variables: Sequence[Variable]
    ) -> None:
        """One step of an optimizer, which is built for these variables."""
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        optimizer.apply_gradients(pairs)

    @abstractmethod
    def models_step(self, model: Any, optimizer: Any, data: Any) -> Any:
        """Call the model's ``train_step`` with this optimizer; returns its logs."""

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """All tensors end to end in one, with a dtype that holds each exactly."""
        wide = wide_type(tensors)
        return keras.ops.concatenate(
            [keras.ops.reshape(keras.ops.cast(t, wide), (-1,)) for t in tensors]
        )

    def to_host(self, tensors: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
        """Tensors as flat float64 arrays, in one transfer."""
        return split(self.pack(tensors), tensors) if tensors else []

    def fetch(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """Tensors as arrays, in one transfer if all have one shape and type; else as they are."""
        alike = {(t.shape, t.dtype) if keras.ops.is_tensor(t) else None for t in tensors}
        one = len(alike) == 1 and None not in alike
        return to_numpy(self.stacked(tensors)) if one else tensors

    def stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors along a new first axis, on their device."""
        return keras.ops.stack(tensors)

    def from_host(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[Tensor]:
        """Arrays of one type as tensors, in one transfer."""
        if len(arrays) == 1:
            return [keras.ops.convert_to_tensor(arrays[0])]
        ends = np.cumsum([array.size for array in arrays])
        packed = keras.ops.convert_to_tensor(np.concatenate([array.ravel() for array in arrays]))
        parts = keras.ops.split(packed, ends[:-1].tolist())
        return [keras.ops.reshape(p, a.shape) for p, a in zip(parts, arrays, strict=True)]

    def held_constant(
        self, variables: Sequence[Variable]
    ) -> contextlib.AbstractContextManager[Any]:
        """No gradient by these variables is needed, which saves what it would be computed from."""
        return contextlib.nullcontext()

    def without_gradients(self) -> contextlib.AbstractContextManager[Any]:
        """Compute values without recording gradients."""
        return contextlib.nullcontext()

    def nothing_traced(self) -> contextlib.AbstractContextManager[Any]:
        """Run functions that the user compiled eagerly, during the whole check.

        A trace would ignore a replaced ``call``, or keep it.
        """
        return contextlib.nullcontext()

    def users_step(self) -> contextlib.AbstractContextManager[Any]:
        """Run functions that the user compiled eagerly, in the user's training step."""
        return contextlib.nullcontext()

    # random numbers ---------------------------------------------------------------------------

    def noting_draws(self, note: Callable[[str], None]) -> contextlib.AbstractContextManager[Any]:
        """Call `note` from inside each eager random operation of the backend.

        Its argument is the operation's name, empty where frames of the stack show it.
        """
        return contextlib.nullcontext()

    # saving time ------------------------------------------------------------------------------

    def lay_out(self, kernels: Sequence[Variable]) -> Callable[[], None]:
        """Store kernels, or tensors of their shapes, in the memory order of convolutions.

        Returns the way back, which keeps their new values.
        """
        return lambda: None

    def building(self, optimizer: Any) -> contextlib.AbstractContextManager[Any]:
        """Let an optimizer make its variables without compiling anything."""
        return contextlib.nullcontext()

    def rehearsed(self, function: Callable[[Any], Any], inputs: Any) -> bool:
        """Run `function` of the inputs for shapes only; False where it needs values.

        `eager` is true meanwhile. Assignments to variables are discarded.
        """
        return False

    def compiled(
        self,
        function: Callable[[Any], Any],
        variables: Sequence[Variable],
        inputs: Any,
        *,
        few_runs: bool = False,
    ) -> Callable[[Any], Any]:
        """`function` of the inputs as a program, traced in this call.

        `eager` is true while tracing.

        Parameters
        ----------
        variables
            Those that the function may read or change.
        few_runs
            Whether the program runs too rarely to be worth every optimisation.
        """
        raise NotImplementedError

    def jitted(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function` of tensors, as one program where each eager operation is a program."""
        return function
