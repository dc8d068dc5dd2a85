"""The random state of Python, numpy and the frameworks that are in use.

Only what is in ``sys.modules`` is touched: a framework that nobody imported has no state.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pytest_bncheck.adapters import accelerators
from pytest_bncheck.adapters.undo import Ending, run_all


class RandomState:
    """The state of every global random generator at one moment."""

    def __init__(self, states: dict[str, Any]) -> None:
        self._states = states

    @classmethod
    def capture(cls) -> RandomState:
        """The state now."""
        return cls({name: source.read(module) for name, source, module in _in_use()})

    def restore(self) -> None:
        """Put every generator back, bit for bit, also where that is interrupted once."""
        run_all([self._write])

    def _write(self) -> None:
        for name, state in self._states.items():
            _SOURCES[name].write(sys.modules[name], state)


def fingerprint() -> dict[str, Any]:
    """The state of every global random generator, by its module, to compare before and after."""
    return {name: _comparable(source.read(module)) for name, source, module in _in_use()}


def seed_everything(seed: int) -> None:
    """Seed every global random generator.

    Parameters
    ----------
    seed
        From 0 to 2**32 - 1, the range of numpy.
    """
    for _, source, module in _in_use():
        source.seed(module, seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator for a while, then put each back where it was."""
    ending = Ending(RandomState.capture().restore)
    with ending, ending:
        seed_everything(seed)
        yield


class _Source(NamedTuple):
    """How to read, write and seed the generators of one module, and the functions that it needs."""

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    seed: Callable[[Any, int], None]
    needs: tuple[str, ...] = ()


def _in_use() -> Iterator[tuple[str, _Source, Any]]:
    """Every source whose module is imported to its end.

    A version without a function that is needed is left alone; its adapter refuses it.
    """
    for name, source in _SOURCES.items():
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        ready = module is not None and not getattr(spec, "_initializing", False)
        if ready and all(hasattr(module, function) for function in source.needs):
            yield name, source, module


def _comparable(state: Any) -> Any:
    """A state with its arrays as bytes, so that ``==`` gives one answer."""
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_comparable(value) for value in state]
    array = state.numpy() if type(state).__module__ == "torch" else state
    return array.tobytes() if hasattr(array, "tobytes") else state


# the sources --------------------------------------------------------------------------------------


def _read_numpy(numpy: Any) -> list[Any]:
    return [numpy.random.get_bit_generator(), numpy.random.get_state(legacy=False)]


def _write_numpy(numpy: Any, states: list[Any]) -> None:
    generator, state = states
    if numpy.random.get_bit_generator() is not generator:
        numpy.random.set_bit_generator(generator)
    numpy.random.set_state(state)


def _read_torch(torch: Any) -> list[Any]:
    return [torch.get_rng_state(), accelerators.random_state()]


def _write_torch(torch: Any, states: list[Any]) -> None:
    torch.set_rng_state(states[0])
    accelerators.set_random_state(states[1])


def _seed_torch(torch: Any, seed: int) -> None:
    # Not torch.manual_seed: it would leave a seed behind for a CUDA that is initialised later.
    torch.default_generator.manual_seed(seed)
    accelerators.seed(seed)


def _read_keras(global_state: Any) -> list[Any]:
    seed = global_state.get_global_attribute("global_random_seed")
    generator = global_state.get_global_attribute("global_seed_generator")
    if generator is None:
        return [seed, None, None]
    return [seed, generator, sys.modules["numpy"].asarray(generator.state).copy()]


def _write_keras(global_state: Any, state: list[Any]) -> None:
    seed, generator, value = state
    global_state.set_global_attribute("global_random_seed", seed)
    global_state.set_global_attribute("global_seed_generator", generator)
    if generator is not None:
        generator.state.assign(value)


def _seed_keras(global_state: Any, seed: int) -> None:
    # At its next use Keras makes a new generator, with a seed from Python's generator.
    global_state.set_global_attribute("global_random_seed", seed)
    global_state.set_global_attribute("global_seed_generator", None)


def _read_tensorflow(eager: Any) -> list[Any]:
    generator = getattr(eager.context(), "_rng", None)
    state = None if generator is None else generator.getstate()
    return [eager.global_seed(), generator, state]


def _write_tensorflow(eager: Any, state: list[Any]) -> None:
    context, (seed, generator, value) = eager.context(), state
    # set_global_seed would start a new sequence; TensorFlow has no public way back.
    context._seed = seed
    if generator is not None:
        generator.setstate(value)
        context._rng = generator
    else:
        vars(context).pop("_rng", None)
    context.clear_kernel_cache()  # operations remember where their random numbers were


_SOURCES = {
    random.__name__: _Source(
        lambda module: module.getstate(),
        lambda module, state: module.setstate(state),
        lambda module, seed: module.seed(seed),
    ),
    "numpy": _Source(
        _read_numpy,
        _write_numpy,
        lambda numpy, seed: numpy.random.seed(seed),
    ),
    "torch": _Source(_read_torch, _write_torch, _seed_torch),
    "keras.src.backend.common.global_state": _Source(
        _read_keras,
        _write_keras,
        _seed_keras,
        needs=("get_global_attribute", "set_global_attribute"),
    ),
    "tensorflow.python.eager.context": _Source(
        _read_tensorflow,
        _write_tensorflow,
        lambda eager, seed: eager.set_global_seed(seed),
        needs=("context", "global_seed", "set_global_seed"),
    ),
}
