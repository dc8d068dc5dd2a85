"""What the Keras adapter needs of a backend beyond Keras.

Keras 3 leaves gradients, eager random numbers and the place of variables to its backend. Each
backend has a file with a class that answers the same questions.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.keras.internals import in_symbolic_scope
from pytest_bncheck.types import InputError

Tensor: TypeAlias = Any
Variable: TypeAlias = Any
Losses: TypeAlias = Callable[[], tuple[Any, Tensor]]

_CLASSES = {"tensorflow": "TensorFlow", "torch": "Torch", "jax": "Jax"}


def own_backend() -> Backend:
    """The part of the backend that Keras runs on.

    Raises
    ------
    InputError
        If it is none that trains, or a version that is not supported.
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
    # Keras' own function warns here since numpy 2.4: torch's __array__ takes no copy=.
    tensor = tensor.detach().cpu()
    return (
        tensor.float() if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16" else tensor
    ).numpy()


def tensor_like(array: Any, tensor: Tensor) -> Tensor:
    """An array from the host as a tensor of another's type."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.ops.convert_to_tensor(array, dtype=dtype)


def split(packed: Tensor, like: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """What `Backend.pack` laid end to end, as flat float64 arrays of these sizes."""
    ends = np.cumsum([math.prod(each.shape) for each in like])
    return np.split(to_numpy(packed).astype(np.float64), ends[:-1])


def wide_type(tensors: Sequence[Tensor]) -> str:
    """The type that holds the values of all, floating as they are."""
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in tensors}
    return "float64" if "float64" in dtypes else "float32"


class Backend(ABC):
    """One backend.

    Attributes
    ----------
    name
        As Keras calls it.
    compilation
        What its compiled steps are called, None if it has none.
    compiles_passes
        Whether even a single forward pass is quicker compiled.
    steps_to_pay
        Number of steps from which on they are quicker compiled, the compilation included.
    """

    name: str
    compilation: str | None = None
    compiles_passes: bool = False
    steps_to_pay: int = 0

    # devices ----------------------------------------------------------------------------------

    @abstractmethod
    def devices(self) -> list[str]:
        """Devices that are there: ``["cpu", "gpu:0"]``."""

    @abstractmethod
    def device_of(self, variables: Sequence[Variable]) -> str:
        """Where a model is, or would be built."""

    def on(self, device: str) -> contextlib.AbstractContextManager[Any]:
        """Make tensors there and compute there."""
        return keras.device(device)  # type: ignore[no-any-return]

    @abstractmethod
    def move(self, variables: Sequence[Variable], device: str) -> Callable[[], None]:
        """Bring variables to a device; returns the way back, which keeps their new values."""

    def lay_out(self, kernels: Sequence[Variable]) -> Callable[[], None]:
        """Lay kernels, or what is of their shapes, in memory as convolutions take them.

        Returns the way back, which keeps their new values.
        """
        return lambda: None

    def keep(self, layers: Sequence[Any], variables: Sequence[Variable]) -> Callable[[], None]:
        """Remember what hangs on layers and variables beside what Keras knows of.

        Returns the way back.
        """
        return lambda: None

    def flags(self) -> Callable[[], None]:
        """Remember the backend's settings of the whole process; returns the way back."""
        return lambda: None

    # values -----------------------------------------------------------------------------------

    def eager(self) -> bool:
        """Whether code runs now, on values, and not to be traced or to find out shapes."""
        return not in_symbolic_scope()

    @abstractmethod
    def copy(self, variable: Variable) -> Tensor:
        """The value as it is now."""

    @abstractmethod
    def change(self, variables: Sequence[Variable]) -> Callable[[], bool]:
        """A function that tells whether the variables have changed since now."""

    def own_variables(self, value: object) -> list[Variable]:
        """Variables in an attribute of a layer that Keras does not track."""
        return []

    def own_seeds(self, value: object) -> list[Variable]:
        """States of random generators in an attribute of a layer that Keras does not know."""
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
        """Derivatives of the second thing that `losses` returns, None where it does not depend.

        What the computation assigns to variables is assigned. The first, any structure of tensors,
        is returned with its values.
        """

    def concrete(self, tensor: Tensor) -> Tensor | None:
        """A tensor without what traces it; None where it is no more than a place in a trace."""
        return tensor

    def building(self, optimizer: Any) -> contextlib.AbstractContextManager[Any]:
        """Let an optimizer make its variables."""
        return contextlib.nullcontext()

    def apply(
        self, optimizer: Any, gradients: Sequence[Tensor | None], variables: Sequence[Variable]
    ) -> None:
        """One step of an optimizer that is built for these variables."""
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        optimizer.apply_gradients(pairs)

    @abstractmethod
    def models_step(self, model: Any, optimizer: Any, data: Any) -> Any:
        """The model's own ``train_step``; returns its logs."""

    def rehearsed(self, function: Callable[[Any], Any], inputs: Any) -> bool:
        """Go through `function` of the inputs for shapes alone; False where that cannot be done.

        Code in it counts as running, and nothing that it assigns to variables stays.
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
        """`function` of the inputs, which may change `variables`, traced now.

        Code in the trace counts as running. A function that runs `once`, or a few times, is not
        worth every optimisation.
        """
        raise NotImplementedError

    def jitted(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function` of tensors alone, as one program where eager operations are one each."""
        return function

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors laid end to end in one of a type that holds each exactly."""
        wide = wide_type(tensors)
        return keras.ops.concatenate(
            [keras.ops.reshape(keras.ops.cast(t, wide), (-1,)) for t in tensors]
        )

    def to_host(self, tensors: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
        """Tensors as flat float64 arrays, in one transfer."""
        return split(self.pack(tensors), tensors) if tensors else []

    def from_host(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[Tensor]:
        """Arrays of one type as tensors, in one transfer."""
        ends = np.cumsum([array.size for array in arrays])
        packed = keras.ops.convert_to_tensor(np.concatenate([array.ravel() for array in arrays]))
        parts = keras.ops.split(packed, ends[:-1].tolist())
        return [keras.ops.reshape(p, a.shape) for p, a in zip(parts, arrays, strict=True)]

    def without_gradients(self) -> contextlib.AbstractContextManager[Any]:
        """Compute for the values alone."""
        return contextlib.nullcontext()

    def nothing_traced(self) -> contextlib.AbstractContextManager[Any]:
        """Run the user's compiled functions eagerly during the whole check.

        A trace would ignore, or keep, a replaced ``call``.
        """
        return contextlib.nullcontext()

    def users_step(self) -> contextlib.AbstractContextManager[Any]:
        """The same for a training step of the user's."""
        return contextlib.nullcontext()

    # random numbers ---------------------------------------------------------------------------

    def noting_draws(self, note: Callable[[str], None]) -> contextlib.AbstractContextManager[Any]:
        """Call `note` from inside each eager random operation of the backend's own.

        With the operation's name where frames of the stack do not tell it.
        """
        return contextlib.nullcontext()
