"""What a hostile model holds and does, put back by a whole check."""

from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextvars
import dataclasses
import decimal
import functools
import gc
import hashlib
import itertools
import multiprocessing
import queue
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from contextlib import nullcontext, suppress
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from doing import Doing, X, Y
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters import graph
from pytest_bncheck.adapters.switches import remember_switches
from pytest_bncheck.adapters.undo import Ending, Undisturbed
from refusing import Refusing, refuse

RNG = np.random.default_rng(0)
COUNTED = []


def net(*middle):
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), *middle, nn.Linear(8, 2))


def run(model, batch=(X, Y), **options):
    return check(model, batch, steps=2, **options)


# memory -------------------------------------------------------------------------------------------


def mapped(tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    return torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r"))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("place", ["batch", "buffer", "closure", "list"])
def test_read_only_memory_is_never_written(tmp_path, place):
    model, batch = net(), (X, Y)
    values = mapped(tmp_path, X.numpy())
    if place == "batch":
        batch = values, Y
    elif place == "buffer":
        model.register_buffer("table", values)
    elif place == "list":
        model.tables = [values]
    else:
        model = net(Doing(lambda: values.sum()))
    run(model, batch)
    assert torch.equal(values, X)


def test_memory_given_up_in_the_check_is_filled_again():
    shard = torch.arange(5.0)
    run(net(Doing(lambda: shard.untyped_storage().resize_(0))))
    assert shard.tolist() == [0, 1, 2, 3, 4]


def test_memory_given_up_before_stays_so():
    shard = torch.arange(5.0)
    shard.untyped_storage().resize_(0)
    model = net()
    model.shards = [shard]
    run(model)
    assert shard.untyped_storage().nbytes() == 0


# undoing ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_left_alone():
    model = net()
    model.lengths = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_one_undo_that_fails_leaves_the_others(monkeypatch):
    refuse(monkeypatch)
    model = net()
    model.first, model[2].last = Refusing(), Refusing()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(OSError, match="cannot be put back"):
        run(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model[1]._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
def test_a_script_keeps_its_modes_and_numbers(training):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls: int = 0
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            self.calls += 1
            return self.drop(x)

    part = torch.jit.script(Counting())
    model = net(part)
    part.train(training)
    run(model)
    assert [module.training for module in part.modules()] == [training] * 2
    assert part.calls == 0


# what a model holds -------------------------------------------------------------------------------


def _count(item):
    item.n = getattr(item, "n", 0) + 1


def _local():
    held = threading.local()
    held.n = 0
    return held


class Plain:
    """An object of the user's."""

    shared = 0
    generator = torch.Generator().manual_seed(1)
    listed: list = []  # noqa: RUF012


class Other(Plain):
    """The class that it becomes."""


def _loss(outputs, targets):
    _loss.calls += 1
    return nn.functional.cross_entropy(outputs, targets)


_loss.calls = 0

HELD = {
    "SimpleNamespace": (types.SimpleNamespace, _count, vars),
    "argparse.Namespace": (argparse.Namespace, _count, vars),
    "UserDict": (collections.UserDict, lambda d: d.update(a=1), dict),
    "UserList": (collections.UserList, lambda d: d.append(1), list),
    "Counter": (lambda: collections.Counter(a=9), lambda c: c.update("a"), dict),
    "threading.local": (_local, _count, lambda item: item.n),
    "class": (Plain, lambda item: setattr(item, "__class__", Other), type),
    "dictionary": (Plain, lambda item: setattr(item, "__dict__", {"n": 1}), vars),
    "class attribute": (
        Plain,
        lambda item: (setattr(Plain, "shared", 1), Plain.listed.append(1)),
        lambda item: (Plain.shared, list(Plain.listed)),
    ),
    "new class attribute": (
        Plain,
        lambda item: setattr(Plain, "fresh", 1),
        lambda item: hasattr(Plain, "fresh"),
    ),
    "generator of a class": (
        Plain,
        lambda item: torch.rand(1, generator=item.generator),
        lambda item: item.generator.get_state().tolist(),
    ),
    "SystemRandom": (random.SystemRandom, lambda item: item.random(), lambda item: None),
}


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_model_holds(kind, fails):
    make, change, read = HELD[kind]
    item = make()
    before = read(item) if kind not in ("SimpleNamespace", "dictionary") else dict(read(item))

    def act():
        change(item)
        if fails:
            raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            run(net(Doing(act)))
    else:
        run(net(Doing(act)))
    assert read(item) == before


class Noisy(nn.Module):
    """Reaches what its code names, and what its class holds."""

    generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        COUNTED.append(1)
        return x + torch.rand(1, generator=self.generator) + RNG.random()


def test_what_the_code_of_a_model_names():
    before = RNG.bit_generator.state, Noisy.generator.get_state().tolist()
    run(net(Noisy()))
    assert (RNG.bit_generator.state, Noisy.generator.get_state().tolist()) == before
    assert COUNTED == []


def test_attributes_of_functions():
    run(net(), loss=_loss)
    assert _loss.calls == 0


def test_hooks_and_attributes_of_parameters():
    model = net()
    weight = model[0].weight

    def act():
        weight.register_hook(lambda gradient: gradient * 2)
        weight.average = weight.detach().clone()
        nn.modules.module.register_module_forward_hook(lambda *_: None)

    run(net(Doing(act)))
    assert not nn.modules.module._global_forward_hooks
    run(nn.Sequential(Doing(act), model))
    assert weight._backward_hooks is None
    assert not hasattr(weight, "average")


def test_a_graph_behind_the_batch_is_left_alone():
    encoder = nn.Linear(4, 4)
    batch = encoder(X)
    run(net(), (batch, Y))
    assert encoder.weight.grad is None
    batch.sum().backward()


@pytest.mark.parametrize("made", ["generator", "sampler", "numpy", "in a generator function"])
def test_generators_of_loaders(made):
    data, dice, numpys = TensorDataset(X, Y), torch.Generator().manual_seed(1), RNG

    class Own:
        def __iter__(self):
            yield from (batch for batch in [(X[numpys.permutation(24)], Y)])

        def __init__(self):
            self.dice = numpys

    def inside():
        loader = DataLoader(data, 12, sampler=RandomSampler(data, generator=dice))
        yield from loader

    loaders = {
        "generator": lambda: DataLoader(data, 12, shuffle=True, generator=dice),
        "sampler": lambda: DataLoader(data, 12, sampler=RandomSampler(data, generator=dice)),
        "numpy": Own,
        "in a generator function": inside,
    }
    before = dice.get_state().tolist(), RNG.bit_generator.state
    check(net(), batches=loaders[made](), steps=2)
    assert (dice.get_state().tolist(), RNG.bit_generator.state) == before


class Watched(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


PRODUCTS = torch.backends.cuda.matmul

SWITCHES = {
    "collector": lambda: (gc.disable(), gc.set_threshold(9)),
    "recursion": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "threads": lambda: sys.setswitchinterval(0.02),
    "numbers": lambda: (np.seterr(under="raise"), np.set_printoptions(precision=3)),
    "decimals": lambda: setattr(decimal.getcontext(), "prec", 3),
    "other decimals": lambda: decimal.setcontext(decimal.Context(prec=3)),
    "functions": lambda: Watched().__enter__(),
    "operations": lambda: Dispatched().__enter__(),
    "nnpack": lambda: torch.backends.nnpack.set_flags(False),
    "attention of cudnn": lambda: torch.backends.cuda.enable_cudnn_sdp(False),
    "mkldnn": lambda: torch.backends.mkldnn.set_flags(False),
    "autocast": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "cache": lambda: torch.set_autocast_cache_enabled(False),
    "warnings": lambda: torch.set_warn_always(True),
    "filling": lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "hooks of Python": lambda: (
        setattr(sys, "excepthook", print),
        setattr(sys, "displayhook", print),
        setattr(sys, "unraisablehook", print),
        setattr(sys, "breakpointhook", print),
        setattr(threading, "excepthook", print),
        sys.set_asyncgen_hooks(print, print),
    ),
    "arguments": lambda: (sys.argv.append("a"), setattr(sys, "argv", [])),
    "limits of Python": lambda: (
        sys.set_int_max_str_digits(0),
        sys.set_coroutine_origin_tracking_depth(3),
        socket.setdefaulttimeout(9),
        setattr(tempfile, "tempdir", "elsewhere"),
    ),
    "events of the collector": lambda: (
        gc.set_debug(gc.DEBUG_UNCOLLECTABLE),
        gc.callbacks.append(lambda *_: None),
    ),
    "signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "products": lambda: (
        setattr(PRODUCTS, "allow_fp16_reduced_precision_reduction", False),
        setattr(PRODUCTS, "allow_bf16_reduced_precision_reduction", False),
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True),
        torch._C._set_sdp_priority_order([2, 1, 0, 3]),
        torch._C._set_mkldnn_deterministic(True),
    ),
    "einsum": lambda: (
        setattr(torch.backends.opt_einsum, "strategy", "greedy"),
        setattr(torch.backends.opt_einsum, "enabled", False),
    ),
    "quantization": lambda: setattr(
        torch.backends.quantized, "engine", torch.backends.quantized.supported_engines[0]
    ),
    "invariants": torch.sparse.check_sparse_tensor_invariants.enable,
    "conversions": lambda: (
        torch.__future__.set_overwrite_module_params_on_conversion(True),
        torch.__future__.set_swap_module_params_on_conversion(True),
    ),
    "gradients": lambda: (
        torch._C._set_view_replay_enabled(True),
        forward_ad._current_level < 0 and forward_ad.enter_dual_level(),
        torch.autograd.graph.save_on_cpu().__enter__(),
    ),
    "hooks for gradients": lambda: setattr(
        nn.modules.module, "_global_is_full_backward_hook", True
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_of_the_process(switch):
    def read():
        return (
            torch.backends.mkldnn.enabled,
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
            torch.is_warn_always_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
            torch._C._get_nnpack_enabled(),
            _get_current_function_mode_stack(),
            _get_current_dispatch_mode_stack(),
            (gc.isenabled(), gc.get_threshold(), sys.getrecursionlimit()),
            (sys.getswitchinterval(), np.geterr(), np.get_printoptions()),
            (decimal.getcontext().prec, id(decimal.getcontext())),
            (sys.excepthook, sys.displayhook, sys.unraisablehook, sys.breakpointhook),
            (threading.excepthook, sys.get_asyncgen_hooks(), id(sys.argv), [*sys.argv]),
            (sys.get_int_max_str_digits(), sys.get_coroutine_origin_tracking_depth()),
            (socket.getdefaulttimeout(), tempfile.tempdir, gc.get_debug(), [*gc.callbacks]),
            signal.getsignal(signal.SIGTERM),
            PRODUCTS.allow_fp16_reduced_precision_reduction,
            PRODUCTS.allow_bf16_reduced_precision_reduction,
            torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
            torch._C._get_sdp_priority_order(),
            torch._C._get_mkldnn_deterministic(),
            (torch.backends.opt_einsum.enabled, torch.backends.opt_einsum.strategy),
            torch.backends.quantized.engine,
            torch.sparse.check_sparse_tensor_invariants.is_enabled(),
            torch.__future__.get_overwrite_module_params_on_conversion(),
            torch.__future__.get_swap_module_params_on_conversion(),
            torch._C._is_view_replay_enabled(),
            forward_ad._current_level,
            torch._C._autograd._top_saved_tensors_default_hooks(True),
            nn.modules.module._global_is_full_backward_hook,
        )

    before = read()
    run(net(Doing(SWITCHES[switch])))
    assert read() == before


# errors -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Closed(Exception):
    def __setattr__(self, name, value):
        raise TypeError("closed")


class Noted(Exception):
    __notes__ = "none"


@pytest.mark.parametrize("error", [Frozen(3), Closed(), Noted()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", ["forward", "loss", "train_step"])
def test_an_exception_that_refuses_attributes_stays_the_users(error, place):
    def throw(*_):
        raise error

    given = {} if place == "forward" else {place: throw}
    with pytest.raises(type(error)) as caught:
        run(net(Doing(throw)) if place == "forward" else net(), **given)
    assert caught.value is error


@pytest.mark.parametrize(
    "inputs",
    [X.numpy()[:, ::-1], X.numpy().astype(">f4"), X.numpy().astype("g")],
    ids=["negative strides", "foreign order of bytes", "long double"],
)
def test_usual_arrays_are_taken(inputs):
    assert run(net(), (inputs, Y)).error is None


class Pair(tuple):
    """A tuple with another constructor."""

    def __new__(cls, one, other):
        return tuple.__new__(cls, (one, other))


OUTPUTS = {
    "sparse": lambda out: out.to_sparse(),
    "complex": lambda out: torch.complex(out, out),
    "8 bits": lambda out: (out, out.to(torch.float8_e4m3fn)),
    "own tuple": lambda out: Pair(out, out),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_the_users_loss_takes(kind):
    class Last(nn.Module):
        def forward(self, x):
            return OUTPUTS[kind](x)

    def loss(outputs, targets):
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        dense = first.to_dense() if first.is_sparse else first
        return nn.functional.cross_entropy(dense.real, targets)

    assert run(nn.Sequential(net(), Last()), loss=loss).error is None


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_buffers(layout):
    model = net()
    model.register_buffer("adjacency", getattr(torch.eye(3), layout)())
    run(model)
    assert torch.equal(model.adjacency.to_dense(), torch.eye(3))


def test_inference_mode_is_named():
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        run(net())


# what cannot be put back --------------------------------------------------------------------------


def _unrestorable(tmp_path):
    return {
        "open files": open(tmp_path / "log", "w"),
        "running generators and coroutines": (k for k in range(99)),
        "iterators": itertools.count(),
        "queues": queue.Queue(),
        "sockets": socket.socket(),
        "caches of functools": functools.lru_cache(lambda key: key),
        "seed sequences": np.random.SeedSequence(1),
        "contexts": contextvars.copy_context(),
        "hashes and compressors": hashlib.sha256(),
        "databases": sqlite3.connect(":memory:"),
        "XML elements": ElementTree.Element("a"),
        "futures": concurrent.futures.Future(),
        "finalizers": weakref.finalize(Plain, print),
        "processes": subprocess.Popen([sys.executable, "-c", ""]),
        "objects of multiprocessing": multiprocessing.Value("i", 0),
        "objects of asyncio": asyncio.Queue(),
    }


def test_what_cannot_be_put_back_is_named_before_the_training(tmp_path):
    limits = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
    made = _unrestorable(tmp_path)
    assert made.keys() == graph.NOT_PUT_BACK.keys()
    assert made.keys() >= {*graph._BY_NAME.values(), *graph._BY_MODULE.values()} - {None}
    for name, item in made.items():
        assert name.replace(" ", "") in "".join(limits.split())
        model = net()
        model.helper = types.SimpleNamespace(held=[item])
        with pytest.warns(graph.NotPutBack, match=rf"2?helper\.held\[0\] \({name}\)"):
            run(model)
        ends = [name for name in ("close", "wait", "detach") if hasattr(item, name)]
        if ends:
            getattr(item, ends[0])()


# found by a second attack -------------------------------------------------------------------------

STRANGE = {
    "conjugate": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.zeros(3, dtype=torch.complex64).conj().imag,
    "coordinates": lambda: torch.eye(3).to_sparse(),
    "8 bits": lambda: torch.ones(3).to(torch.float8_e4m3fn).view(torch.uint8),
    "wide complex": lambda: torch.zeros(3, dtype=torch.complex128),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_of_every_kind(kind):
    tensor = STRANGE[kind]()
    other = tensor.clone()
    before = tensor.to_dense().clone()
    model = net(
        Doing(
            lambda: (tensor.mul_(2), tensor.add_(other).add_(1) if kind != "coordinates" else None)
        )
    )
    model.tensor = tensor
    run(model)
    assert torch.equal(tensor.to_dense(), before)


def test_containers_with_an_order_or_members_of_their_own():
    ordered, masked = collections.OrderedDict(a=1, b=2), np.ma.array([1.0, 2.0], mask=[0, 1])
    weak, variable = weakref.WeakSet(), contextvars.ContextVar("variable", default=0)

    def act():
        ordered.move_to_end("a")
        masked[1] = 5.0
        weak.add(Plain)
        variable.set(1)

    run(net(Doing(act)))
    assert (list(ordered), masked.mask.tolist()) == (["a", "b"], [False, True])
    assert (len(weak), variable.get()) == (0, 0)


# found by a second attack -------------------------------------------------------------------------


def stepping(change):
    """A training step that also changes something."""

    def step(model, batch):
        change(model)
        inputs, labels = batch
        loss = nn.functional.cross_entropy(model(inputs), labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        return loss

    return step


TURNS = {
    "transposed": lambda held: held.t_(),
    "conjugated": lambda held: setattr(held, "data", held.data.conj()),
    "other strides": lambda held: held.as_strided_((2, 2), (0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_a_tensor_gets_its_strides_back(turn):
    model = net()
    values = torch.arange(4.0).view(2, 2)
    model.table = values.to(torch.complex64) if turn == "conjugated" else values
    before = model.table.clone()
    run(model, train_step=stepping(lambda model: TURNS[turn](model.table)))
    assert torch.equal(model.table, before)
    assert (model.table.stride(), model.table.is_conj()) == ((2, 1), False)


@pytest.mark.filterwarnings("ignore:Setting the strides:DeprecationWarning")
def test_an_array_gets_its_strides_back():
    model = net()
    model.table = np.arange(9.0).reshape(3, 3)

    def turn(model):
        model.table.strides = model.table.strides[::-1]

    run(model, train_step=stepping(turn))
    assert model.table.strides == (24, 8)
    assert np.array_equal(model.table, np.arange(9.0).reshape(3, 3))


@pytest.mark.parametrize("view_first", [True, False])
def test_a_view_of_an_array_that_was_made_read_only(view_first):
    model, whole = net(), np.zeros(3)
    held = {"view": whole[:], "whole": whole}
    model.held = held if view_first else dict(reversed(held.items()))

    def close(model):
        if held["view"].flags.writeable:
            held["view"][:] = 1
            held["view"].flags.writeable = held["whole"].flags.writeable = False

    run(model, train_step=stepping(close))
    assert whole.tolist() == [0, 0, 0]
    assert whole.flags.writeable
    assert held["view"].flags.writeable


def test_a_parametrization_that_is_removed():
    model = net()
    nn.utils.parametrizations.weight_norm(model[0])
    before = model[0].weight.detach().clone()

    def remove(model):
        if nn.utils.parametrize.is_parametrized(model[0]):
            nn.utils.parametrize.remove_parametrizations(model[0], "weight")

    run(model, train_step=stepping(remove))
    assert torch.equal(model[0].weight, before)
    assert nn.utils.parametrize.is_parametrized(model[0])


@pytest.mark.parametrize("make", [mock.Mock, mock.MagicMock])
def test_a_mock_forgets_its_calls(make):
    model = net()
    model.callback = make()
    model.callback("before")
    run(model, train_step=stepping(lambda model: model.callback.log("in it") or model.callback()))
    assert model.callback.mock_calls == [mock.call("before")]


CALLS = 0


def count(*_):
    global CALLS
    CALLS += 1
    return 0.0


class Through:
    """Leads to `count` by what functools, numpy and Python make of functions."""

    partial = functools.partialmethod(count, 1)
    cached = functools.cached_property(count)
    deleted = property(None, None, count)

    def __init__(self):
        self.each = np.vectorize(count)
        self.remembered = functools.lru_cache(lambda: count())


@pytest.mark.filterwarnings("ignore:pytest-bncheck trains:UserWarning")
@pytest.mark.parametrize(
    "use",
    [
        lambda held: held.partial(),
        lambda held: held.cached,
        lambda held: delattr(held, "deleted"),
        lambda held: held.each([1, 2]),
        lambda held: held.remembered(),
    ],
    ids=["partialmethod", "cached_property", "deleter", "vectorize", "lru_cache"],
)
def test_what_functions_name_behind_those_that_wrap_them(use):
    model, before = net(), CALLS
    model.held = Through()
    run(model, train_step=stepping(lambda model: use(model.held)))
    assert before == CALLS


class Missing(nn.Module):
    """Raises another error than Python's where it has no attribute."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def __getattr__(self, name):
        return self.__dict__["_modules"][name]

    def forward(self, x):
        return self.__dict__["_modules"]["inner"](x)


class Unused(nn.Module):
    """Has a lazy layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.later = nn.LazyLinear(3)

    def forward(self, x):
        return x


class Outline(nn.Module):
    """Holds a tensor without values, and numbers that compare as arrays do."""

    class Number(int):
        __hash__ = int.__hash__

        def __eq__(self, other):
            return np.zeros(2)

        def __ne__(self, other):
            return np.zeros(2)

    def __init__(self):
        super().__init__()
        self.spec = torch.empty(3, device="meta")
        self.specs = [self.spec]
        self.number = self.Number(3)

    def forward(self, x):
        return x


@pytest.mark.parametrize("middle", [Missing, Unused, Outline])
def test_modules_that_train_without_the_plugin(middle):
    model = net(middle())
    report = run(model, train_step=stepping(lambda model: None))
    assert report.error is None


# found by a fourth attack -------------------------------------------------------------------------


class Interrupted(BaseException):
    """What the handler of a signal raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_a_signal_as_soon_as_the_ending_begins(monkeypatch):
    """A second exit does the work of the first, and the work itself is never interrupted."""
    done = []
    real, calls = Ending.__exit__, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 1:
            raise Interrupted
        real(self, *args)

    monkeypatch.setattr(Ending, "__exit__", interrupted)
    ending = Ending(lambda: done.append(1))
    with pytest.raises(Interrupted), ending, ending:
        pass
    assert done == [1]


def test_signals_wait_for_the_end_of_an_undo():
    def throw(*_):
        raise Interrupted

    steps, before = [], signal.signal(signal.SIGINT, throw)
    try:
        with pytest.raises(Interrupted), Undisturbed():
            steps.append(signal.raise_signal(signal.SIGINT))
        assert steps == [None]
        assert signal.getsignal(signal.SIGINT) is throw
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("left", [None, print])
@pytest.mark.parametrize("first", [True, False])
def test_signals_wait_also_where_what_they_call_is_put_back(left, first):
    def throw(*_):
        raise Interrupted

    steps, before = [], signal.signal(signal.SIGINT, throw if first else signal.SIG_IGN)
    try:
        put_back = remember_switches()
        if left is not None:
            signal.signal(signal.SIGINT, left)
        expected = pytest.raises(Interrupted) if first else nullcontext()
        with expected, Undisturbed(), Undisturbed():
            put_back()
            steps.append(signal.raise_signal(signal.SIGINT))
        assert steps == [None]
        assert signal.getsignal(signal.SIGINT) is (throw if first else signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)


def test_only_one_thread_makes_a_check():
    def step(model, batch):
        refused = []

        def other():
            with suppress(InputError):
                run(net())
                return
            refused.append(1)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert refused
        run(net())  # one inside of the other is no second thread
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    run(net(), train_step=step)
    run(net())


LEFT_ON = {
    "inference mode": (
        lambda: torch.inference_mode().__enter__(),
        torch.is_inference_mode_enabled,
    ),
    "numpy's generator": (
        lambda: np.random.set_bit_generator(np.random.PCG64(1)),
        lambda: type(np.random.get_bit_generator()),
    ),
}


@pytest.mark.parametrize("name", LEFT_ON)
def test_modes_that_a_step_leaves_on(name):
    enter, read = LEFT_ON[name]
    before, entered = read(), []

    def step(model, batch):
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if not entered:
            entered.append(enter())
        return loss

    try:
        run(net(), train_step=step)
    except RuntimeError:  # nothing trains in inference mode
        assert name == "inference mode"
    assert read() == before


@pytest.mark.parametrize("change", ["resize_", "double"])
def test_tensors_of_inference_mode_that_change_their_form(change):
    with torch.inference_mode():
        held = torch.arange(3.0)

    def act():
        with torch.inference_mode():
            if change == "resize_":
                held.resize_(7).fill_(1)
            else:
                held.data = held.double() + 1

    run(net(Doing(act)))
    assert held.tolist() == [0, 1, 2]
    assert held.dtype == torch.float32


class Sum(nn.Module):
    def forward(self, x):
        return x.sum()


class Sparse(nn.Module):
    def forward(self, x):
        return x.to_sparse()


@pytest.mark.parametrize("last", [Sum, Sparse])
@pytest.mark.parametrize("targets", [Y, Y.float(), torch.rand(len(Y))], ids=["0", "1", "2"])
def test_outputs_that_suggest_no_loss_are_one_clear_error(last, targets):
    with pytest.raises(InputError, match=r"outputs|loss"):
        run(nn.Sequential(net(), last()), (X, targets))


def test_a_buffer_that_a_step_deletes():
    model = net()
    prune.l1_unstructured(model[0], "weight", amount=3)
    names = [name for name, _ in model.named_buffers()]

    def remove(model):
        if prune.is_pruned(model[0]):
            prune.remove(model[0], "weight")

    run(model, train_step=stepping(remove))
    assert [name for name, _ in model.named_buffers()] == names


def test_a_module_without_a_mode():
    model = net()
    model[1].training = None  # PyTorch takes it as eval mode
    run(model)
    assert model[1].training is None


def test_what_the_first_pass_of_a_lazy_model_changes():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.lazy, self.last = nn.LazyLinear(8), nn.Linear(8, 2)
            self.calls, self.log, self.dice = 0, [], torch.Generator().manual_seed(1)
            self.register_buffer("total", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            self.log.append(torch.rand(1, generator=self.dice))
            self.total.add_(1)
            return self.last(self.lazy(x))

    model = Counting()
    before = model.dice.get_state()
    run(model)
    assert (model.calls, model.log, model.total.tolist()) == (0, [], [0])
    assert torch.equal(model.dice.get_state(), before)
    assert model.lazy.weight.shape == (8, 4)
