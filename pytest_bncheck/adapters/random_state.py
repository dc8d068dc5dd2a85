"""The random state of Python, numpy and the frameworks that are in use.

Only what is in ``sys.modules`` is touched: a framework that nobody imported has no state.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Restore: TypeAlias = Callable[[], None]


class RandomState:
    """The state of every global random generator at one moment."""

    def __init__(self, restores: list[Restore]) -> None:
        self._restores = restores

    @classmethod
    def capture(cls) -> RandomState:
        """The state now."""
        sources = ((_loaded(name), take) for name, (take, _) in _SOURCES.items())
        return cls([take(module) for module, take in sources if module is not None])

    def restore(self) -> None:
        """Put every generator back, bit for bit."""
        for restore in self._restores:
            restore()


def seed_everything(seed: int) -> None:
    """Seed every global random generator.

    Parameters
    ----------
    seed
        From 0 to 2**32 - 1, the range of numpy.
    """
    for name, (_, plant) in _SOURCES.items():
        module = _loaded(name)
        if module is not None:
            plant(module, seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator for a while, then put each back where it was."""
    before = RandomState.capture()
    try:
        seed_everything(seed)
        yield
    finally:
        before.restore()


def _loaded(name: str) -> Any:
    """A module that is imported to its end, or None."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if getattr(spec, "_initializing", False) else module


# Each source: how to take its state, which gives the way back, and how to seed it. ----------------


def _take_python(module: Any) -> Restore:
    state = module.getstate()
    return lambda: module.setstate(state)


def _take_numpy(numpy: Any) -> Restore:
    state = numpy.random.get_state(legacy=False)
    return lambda: numpy.random.set_state(state)


def _take_torch(torch: Any) -> Restore:
    state = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore() -> None:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return restore


def _seed_torch(torch: Any, seed: int) -> None:
    # Not torch.manual_seed: it would leave a seed behind for a CUDA that is initialised later.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _take_keras(global_state: Any) -> Restore:
    seed = global_state.get_global_attribute("global_random_seed")
    generator = global_state.get_global_attribute("global_seed_generator")
    if generator is not None:
        value = sys.modules["numpy"].asarray(generator.state).copy()

    def restore() -> None:
        global_state.set_global_attribute("global_random_seed", seed)
        global_state.set_global_attribute("global_seed_generator", generator)
        if generator is not None:
            generator.state.assign(value)

    return restore


def _seed_keras(global_state: Any, seed: int) -> None:
    # The generator is made anew at its next use, with a seed from Python's generator.
    global_state.set_global_attribute("global_random_seed", seed)
    global_state.set_global_attribute("global_seed_generator", None)


def _take_tensorflow(eager: Any) -> Restore:
    context = eager.context()
    seed = eager.global_seed()
    generator = getattr(context, "_rng", None)
    state = generator.getstate() if generator is not None else None

    def restore() -> None:
        # set_global_seed would start a new sequence; TensorFlow has no public way back.
        context._seed = seed
        if generator is not None:
            generator.setstate(state)
            context._rng = generator
        else:
            vars(context).pop("_rng", None)
        context.clear_kernel_cache()  # operations remember where their random numbers were

    return restore


def _seed_tensorflow(eager: Any, seed: int) -> None:
    eager.set_global_seed(seed)


_SOURCES: dict[str, tuple[Callable[[Any], Restore], Callable[[Any, int], None]]] = {
    random.__name__: (_take_python, lambda module, seed: module.seed(seed)),
    "numpy": (_take_numpy, lambda numpy, seed: numpy.random.seed(seed)),
    "torch": (_take_torch, _seed_torch),
    "keras.src.backend.common.global_state": (_take_keras, _seed_keras),
    "tensorflow.python.eager.context": (_take_tensorflow, _seed_tensorflow),
}
