"""PyTorch: whatever happens in a check, model, optimizer, generators and switches are as before."""

from __future__ import annotations

import gc
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as some

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn.modules import module as torch_module  # noqa: E402

from pytest_bncheck import InputError, check  # noqa: E402

from .random_cases import LOSSES, train  # noqa: E402
from .random_nets import Builder  # noqa: E402

STEPS = 4
HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


# what must not change ---------------------------------------------------------------------------


def state(model: nn.Module, *others: Any) -> dict[str, Any]:
    """Every value that a check could leave changed, as something that can be compared."""
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": exact(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "switches": switches(),
        "hooks of all modules": {
            k: dict(v) for k, v in vars(torch_module).items() if is_hooks(k, v)
        },
        "others": exact(others),
    }
    for name, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        found[f"{name} is"] = id(module), type(module)
        found[f"{name} hooks"] = {key: dict(own[key]) for key in HOOKS}
        found[f"{name} attributes"] = exact({k: v for k, v in own.items() if k not in HOOKS})
        found[f"{name} gradients"] = [gradient(p) for p in module.parameters(recurse=False)]
    return found


def is_hooks(name: str, value: Any) -> bool:
    return name.startswith("_global") and isinstance(value, dict)


def switches() -> dict[str, Any]:
    """PyTorch's and numpy's settings of the whole process."""
    cudnn = torch.backends.cudnn
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "matmul": torch.get_float32_matmul_precision(),
        "numpy": np.geterr(),
        "trace": sys.gettrace(),
        "signal": signal.getsignal(signal.SIGALRM),
    }


def gradient(parameter: Any) -> Any:
    return None if parameter.grad is None else (id(parameter.grad), exact(parameter.grad))


def exact(value: Any) -> Any:
    """A value with the bytes, type and identity of every tensor in it."""
    if isinstance(value, Tensor):
        bits = value.detach().numpy().tobytes()
        return id(value), bits, value.dtype, value.requires_grad, value.data_ptr()
    if isinstance(value, np.ndarray):
        return value.dtype, value.tobytes()
    if isinstance(value, nn.Module):
        return id(value)
    if isinstance(value, torch.optim.Optimizer):
        return exact(value.state), [(id(group), exact(group)) for group in value.param_groups]
    if isinstance(value, dict):
        return [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [exact(item) for item in value]
    return value


# what may happen --------------------------------------------------------------------------------


class Interruption(Exception):
    """An error of the user's."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raise from a signal, as pytest-timeout does, in the middle of whatever runs."""

    def stop(*_: Any) -> None:
        pytest.fail("Timeout", pytrace=False)

    before = signal.signal(signal.SIGALRM, stop)
    gc.disable()  # Python swallows what is raised in a callback of the collector, as hypothesis has
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


def after(calls: int, event: Callable[[], Any]) -> Callable[..., Any]:
    """A function that does nothing so often, and then `event` each time."""
    left = [calls]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            event()

    return count


def throw(error: BaseException) -> Callable[[], Any]:
    def event() -> None:
        raise error

    return event


def meddle() -> None:
    """User code that changes every switch, and every generator, and puts nothing back."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    torch.set_default_device("meta")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


EVENTS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "an error": throw(Interruption("no")),
    "Ctrl-C": throw(KeyboardInterrupt()),
    "an exit": throw(SystemExit(3)),
    "no memory": throw(torch.OutOfMemoryError("CUDA out of memory (simulated)")),
    "no host memory": throw(MemoryError()),
    "meddling": meddle,
}


@pytest.fixture(autouse=True)
def _keep_switches() -> Iterator[None]:
    """A switch that a check loses is no fault of the next tests."""
    before = switches()
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(before["dtype"])
    torch.set_grad_enabled(before["grad"])
    torch.use_deterministic_algorithms(before["deterministic"])
    torch.autograd.set_detect_anomaly(before["anomaly"])


@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    seed=some.integers(0, 10_000),
    event=some.sampled_from(sorted(EVENTS)),
    place=some.sampled_from(["forward", "loss", "optimizer", "backward"]),
    calls=some.integers(0, 3 * STEPS),
    used=some.booleans(),
    mixed=some.booleans(),
    options=some.sampled_from([{}, {"planned_updates": 9}, {"strict": True}, {"device": "cpu"}]),
)
def test_any_net_any_event(seed, event, place, calls, used, mixed, options):
    builder = Builder(seed)
    model, batch = builder.net(builder.blocks(), dropout=0.2), builder.batch()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if used:
        train(model, batch, 2, builder.task)
        LOSSES[builder.task](model(batch[0]), batch[1]).backward()
        optimizer.step()
    if mixed:
        next(model.children()).eval()
    happen = after(calls, EVENTS[event])
    if place == "forward":
        model[1].register_forward_hook(happen)
    if place == "backward":
        model[1].register_full_backward_hook(happen)
    if place == "optimizer":
        optimizer.register_step_post_hook(happen)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if place == "loss":
            happen()
        return LOSSES[builder.task](outputs, targets)

    before = state(model, optimizer, batch)
    try:
        check(model, batch, steps=STEPS, loss=loss, optimizer=optimizer, seed=seed, **options)
    except (Interruption, KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError):
        assert event not in ("nothing", "meddling")
    except (InputError, RuntimeError):  # no step without gradients, or on the meta device
        assert event == "meddling"
    assert_same(before, state(model, optimizer, batch))


def assert_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """One line for each thing that changed, not the bytes of all tensors."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    assert not changed


@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.03, 0.1])
def test_a_timeout_anywhere(seconds):
    builder = Builder(3)
    model, batch = builder.net(builder.blocks(), dropout=0.2), builder.batch()
    before = state(model, batch)
    with pytest.raises(pytest.fail.Exception, match="Timeout"), in_time(seconds):
        check(model, batch, steps=100_000)
    assert_same(before, state(model, batch))


@pytest.mark.parametrize(
    ("momentum", "factor", "verdict"),
    [(0.3, 1.0, "pass"), (0.001, 1.0, "fail"), (0.3, torch.nan, "warn")],
)
def test_a_check_that_ends(momentum, factor, verdict):
    """Passed, failed with its diagnosis, and without a verdict since the loss is NaN."""
    builder = Builder(14)
    builder.dims, builder.task, builder.momentum = 1, "classes", momentum
    model, batch = builder.net(builder.blocks(kinds=("plain",))), builder.batch()
    before = state(model, batch)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return factor * LOSSES["classes"](outputs, targets)

    assert check(model, batch, steps=100, loss=loss).verdict == verdict
    assert_same(before, state(model, batch))
