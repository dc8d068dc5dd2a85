"""Every way by which code can reach what it changes, and what it changes there, is put back."""

from __future__ import annotations

import array
import codecs
import collections
import configparser
import contextlib
import contextvars
import ctypes
import decimal
import email.message
import enum
import functools
import graphlib
import inspect
import itertools
import json
import logging
import mmap
import os
import pathlib
import random
import reprlib
import sys
import tempfile
import textwrap
import threading
import types
import weakref
import zlib
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.utils import prune
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

from doing import Doing, X, Y
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.graph import NotPutBack
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.adapters.torch.state import Snapshot
from pytest_bncheck.adapters.undo import run_all


def run(act, **held):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), Doing(act), nn.Linear(8, 2))
    for name, value in held.items():
        setattr(model, name, value)
    return check(model, (X, Y), steps=2)


class Box:
    """Counts."""

    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1


class Registering(type):
    box = Box()


class Registered(metaclass=Registering):
    """A class with a class of its own."""


class Kind(enum.Enum):
    FIRST = [0]  # noqa: RUF012


def _each(items):
    def act():
        for item in items:
            item.add()

    return act


def _getting(box):
    class Dunder:
        def __getitem__(self, index):
            box.add()

    held = Dunder()
    return lambda: held[0]


def _caused(box):
    error = ValueError()
    error.__cause__ = KeyError(box)
    return error


WAYS = {
    "weak proxy": lambda box: (lambda proxy: lambda: proxy.add())(weakref.proxy(box)),
    "key": lambda box: _each({box: 1}),
    "set": lambda box: _each({box}),
    "weak reference": lambda box: (lambda ref: lambda: ref().add())(weakref.ref(box)),
    "weak values": lambda box: (lambda held: lambda: held["a"].add())(
        weakref.WeakValueDictionary(a=box)
    ),
    "view": lambda box: _each({"a": box}.values()),
    "view of keys": lambda box: _each({box: 1}.keys()),
    "mapping proxy": lambda box: (lambda held: lambda: held["a"].add())(
        types.MappingProxyType({"a": box})
    ),
    "method with two underscores": _getting,
    "method by the type of its argument": lambda box: (lambda held: lambda: held.add(1))(
        type("Choosing", (), {"add": functools.singledispatchmethod(lambda *_: box.add())})()
    ),
    "cause": lambda box: (lambda held: lambda: held.__cause__.args[0].add())(_caused(box)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_reached(way):
    box = Box()
    run(WAYS[way](box))
    assert box.count == 0


def test_what_is_reached_by_a_method_of_a_builtin():
    listed, mapped = [], {}
    append, update = listed.append, mapped.update
    run(lambda: (append(1), update(a=1)))
    assert (listed, mapped) == ([], {})


def test_classes_of_classes_and_members_of_enumerations():
    held = Registered()
    run(lambda: (type(type(held)).box.add(), Kind.FIRST.value.append(1)))
    assert (Registering.box.count, Kind.FIRST.value) == (0, [0])


# variables ----------------------------------------------------------------------------------------

VARIABLE = contextvars.ContextVar("VARIABLE")


def _unassigned():
    def act():
        nonlocal late
        late = 1

    if False:
        late = 0
    return act


def test_variables_without_a_value_are_without_one_again():
    act = _unassigned()

    def assign():
        global CREATED
        CREATED = 1
        VARIABLE.set(1)
        act()

    run(assign)
    assert "CREATED" not in globals()
    assert VARIABLE.get(None) is None
    with pytest.raises(ValueError, match="empty"):
        _ = act.__closure__[0].cell_contents


settings = types.ModuleType("settings_of_a_user")
settings.inner = types.ModuleType("settings_of_a_user.inner")
settings.inner.rate, settings.inner.log = 0, []


def test_variables_of_the_modules_of_a_user(monkeypatch):
    monkeypatch.setitem(sys.modules, settings.__name__, settings)

    def act():
        settings.inner.rate += 1
        settings.inner.log.append(1)

    run(act)
    assert (settings.inner.rate, settings.inner.log) == (0, [])


def test_a_module_of_python_that_a_model_holds():
    held = types.ModuleType("settings_without_a_file")
    held.rate, held.log = 0, []
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.settings = held

    def change(*_):
        model.settings.rate += 1
        model.settings.log.append(1)

    model.register_forward_hook(change)
    check(model, (X, Y), steps=2)
    assert (held.rate, held.log) == (0, [])


def test_what_is_behind_a_proxy_that_has_lost_it():
    box = Box()
    proxy = weakref.proxy(box)
    del box
    run(lambda: None, held=[proxy])


# tensors of unusual kinds -------------------------------------------------------------------------


def test_tensors_made_under_inference_mode():
    with torch.inference_mode():
        held, frozen = torch.arange(3.0), torch.arange(2.0)

    def act():
        with torch.inference_mode():
            held.add_(1)

    run(act, held=frozen)
    assert held.tolist() == [0, 1, 2]


def test_gradients_that_a_tensor_between_layers_keeps():
    between = torch.ones(3, requires_grad=True) * 2
    between.retain_grad()
    between.sum().backward(retain_graph=True)
    before = between.grad

    def act():
        between.grad.add_(1)
        between.grad = torch.zeros(3)

    run(act)
    assert between.grad is before
    assert before.tolist() == [1, 1, 1]


class Refusing(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("nothing can be done with it")


def test_tensors_that_refuse_every_operation():
    assert run(lambda: None, held=torch.arange(3.0).as_subclass(Refusing)).error is None


class Uncopied(np.ndarray):
    def copy(self, *_):
        raise RuntimeError("it is not copied")

    view = astype = __eq__ = copy
    __hash__ = None


def test_arrays_that_refuse_to_be_copied():
    held = np.arange(3.0).view(Uncopied)
    run(lambda: np.copyto(held, 7.0))
    assert np.asarray(held).tolist() == [0, 1, 2]


class Uncompared:
    """A hook."""

    count = 0
    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("it is not compared")

    def __call__(self, gradient):
        self.count += 1


def test_what_hooks_of_parameters_count():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    hooks = Uncompared(), Uncompared()
    model[0].weight.register_hook(hooks[0])

    def step(model, batch):
        model[0].weight.register_hook(hooks[1])
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    check(model, (X, Y), steps=2, train_step=step)
    assert [hook.count for hook in hooks] == [0, 0]
    assert [*model[0].weight._backward_hooks.values()] == [hooks[0]]


# containers and memory ----------------------------------------------------------------------------


def _raises(self):
    raise ZeroDivisionError


@pytest.mark.parametrize("plain", [list, tuple, set, frozenset, collections.deque])
@pytest.mark.parametrize("iterate", [_raises, lambda self: itertools.repeat(0)])
@pytest.mark.filterwarnings("error")
def test_no_container_is_asked_for_its_own_iterator(plain, iterate):
    box = Box()
    held = type("Own", (plain,), {"__iter__": iterate})([box, 1])
    run(lambda: next(iter(plain.__iter__(held))) and box.add(), held=held)
    assert box.count == 0


def test_a_proxy_of_nothing_is_left_alone():
    class Unbound:
        @property
        def __class__(self):
            raise RuntimeError("outside of its context")

    held = Unbound()
    model = nn.Sequential(nn.Linear(4, 2))
    model.__dict__["held"] = held
    assert check(model, (X, Y), steps=2).error is None


class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int), ("P", ctypes.c_double))


class Pointing(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int), ("p", ctypes.c_void_p), ("pair", Pair))


MEMORY = {
    "view": (lambda: memoryview(bytearray(3)), bytes),
    "view of an array": (lambda: memoryview(array.array("i", [1, 2])), bytes),
    "mapped": (lambda: mmap.mmap(-1, 8), lambda held: held[:]),
    "numbers of C": (lambda: (ctypes.c_int * 2)(), list),
    "records": (
        lambda: np.zeros(2, dtype=[("a", int), ("b", object)])["a"],
        lambda held: held.tolist(),
    ),
}


@pytest.mark.parametrize("kind", MEMORY)
def test_memory(kind):
    make, read = MEMORY[kind]
    held = make()
    before = read(held)

    def act():
        held[0] = 7

    run(act)
    assert read(held) == before


def test_members_of_records_and_structures():
    records = np.zeros(2, dtype=[("a", int), ("b", object)])
    records["b"] = [[1], [2]]
    pair = Pair(1, 2.0)
    locked = np.zeros(2)
    locked.flags.writeable = False
    factory = collections.defaultdict(int)
    event = threading.Event()
    text = collections.UserString("a")

    def act():
        records["b"][0].append(3)
        records["b"][1] = None
        pair.a, pair.P = 7, 7.0
        locked.flags.writeable = True
        locked[0] = 1
        factory.default_factory = list
        event.set()
        text.data = "b"

    run(act)
    assert records["b"].tolist() == [[1], [2]]
    assert (pair.a, pair.P) == (1, 2.0)
    assert (locked.tolist(), locked.flags.writeable) == ([0, 0], False)
    assert (factory.default_factory, event.is_set(), text.data) == (int, False, "a")


def test_a_buffer_that_grows_in_place():
    bank = torch.zeros(2, 4)
    run(lambda: bank.resize_(len(bank) + 1, 4).fill_(1), bank=bank)
    assert torch.equal(bank, torch.zeros(2, 4))


def test_a_class_whose_module_is_described_by_its_metaclass():
    """As Cython's metaclass does for the types of compiled functions."""

    class Meta(type):
        __module__ = property(lambda cls: "compiled")

    class Held(metaclass=Meta):
        count = 0

    def act():
        Held.count += 1

    run(act, kind=Held)
    assert Held.count == 0


def test_a_vocabulary_costs_next_to_nothing(monkeypatch):
    """Its words are not looked at one by one."""
    from pytest_bncheck.adapters import graph

    looked = []
    monkeypatch.setattr(graph, "remember", lambda item: looked.append(item))
    words = {f"word{k}": k for k in range(5000)}
    run(lambda: None, words=words, ids=[*words])
    assert len(looked) < 1000


# generators, iterators ----------------------------------------------------------------------------


def test_loaders_and_sequences_that_code_draws_from():
    dice, sequence = torch.Generator().manual_seed(1), torch.quasirandom.SobolEngine(2)
    loader = DataLoader(TensorDataset(X, Y), 12, shuffle=True, generator=dice)
    before = dice.get_state().tolist()
    run(lambda: (next(iter(loader)), sequence.draw(1)))
    assert (dice.get_state().tolist(), sequence.num_generated) == (before, 0)


def test_generators_that_code_spawns():
    dice = np.random.default_rng(3)
    first = np.random.default_rng(3).spawn(1)[0].random()
    run(lambda: dice.spawn(1))
    assert dice.spawn(1)[0].random() == first


def test_a_named_file_is_open_too():
    with tempfile.NamedTemporaryFile() as file, pytest.warns(NotPutBack, match="open files"):
        run(lambda: file.write(b"x"))


ITERATORS = {
    "map": lambda: map(int, range(99)),
    "chain": lambda: itertools.chain(range(99)),
    "dictionary": lambda: iter(dict.fromkeys(range(99))),
    "range": lambda: iter(range(99)),
    "reversed": lambda: reversed([1] * 99),
    "callable": lambda: iter(int, 1),
    "loader": lambda: iter(DataLoader(TensorDataset(X, Y), 1)),
}


@pytest.mark.parametrize("kind", ITERATORS)
def test_iterators_are_named(kind):
    held = ITERATORS[kind]()
    with pytest.warns(NotPutBack, match=r"\(iterators\)"):
        run(lambda: next(held))


async def _asynchronous():
    yield


OTHERS = {
    "running generators and coroutines": _asynchronous,
    "hashes and compressors": zlib.compressobj,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_has_no_state_to_read_is_named(kind):
    held = OTHERS[kind]()
    with pytest.warns(NotPutBack, match=rf"\({kind}\)"):
        run(lambda: held)


# objects of libraries ----------------------------------------------------------------------------


def _pruned():
    layer = nn.Linear(2, 2)
    for _ in range(2):
        prune.l1_unstructured(layer, "weight", amount=1)
    return next(iter(layer._forward_pre_hooks.values()))


PLAIN = {
    "configuration": (
        configparser.ConfigParser,
        lambda held: held.read_dict({"a": {"b": "1"}}),
        lambda held: held.sections(),
    ),
    "exits": (
        contextlib.ExitStack,
        lambda held: held.callback(print),
        lambda h: len(h.__dict__["_exit_callbacks"]),
    ),
    "text": (textwrap.TextWrapper, lambda held: setattr(held, "width", 3), lambda h: h.width),
    "message": (email.message.Message, lambda h: h.add_header("a", "b"), lambda h: h.keys()),
    "order": (
        lambda: graphlib.TopologicalSorter({"a": "b"}),
        lambda held: held.add("a", "c"),
        lambda h: [node.npredecessors for node in h._node2info.values()],
    ),
    "words": (reprlib.Repr, lambda held: setattr(held, "maxlist", 1), lambda h: h.maxlist),
    "arguments": (
        lambda: inspect.signature(lambda a: 0).bind(1),
        lambda held: held.arguments.update(a=2),
        lambda held: held.args,
    ),
    "new arguments": (
        lambda: inspect.signature(lambda a: 0).bind(1),
        lambda held: setattr(held, "arguments", {"a": 2}),
        lambda held: held.args,
    ),
    "barrier": (lambda: threading.Barrier(1), lambda h: h.abort(), lambda h: h.broken),
    "decoder": (
        codecs.getincrementaldecoder("utf8"),
        lambda held: held.setstate((b"\xc3", 0)),
        lambda held: held.getstate(),
    ),
    "encoder": (json.JSONEncoder, lambda h: setattr(h, "indent", 1), lambda h: h.indent),
    "polynomial": (
        lambda: np.poly1d([1.0, 2.0]),
        lambda held: held.__setitem__(3, 5.0),
        lambda held: held.coeffs.tolist(),
    ),
    "newer polynomial": (
        lambda: np.polynomial.Polynomial([1.0]),
        lambda held: np.add(held.coef, 1, out=held.coef),
        lambda held: held.coef.tolist(),
    ),
    "exception": (
        lambda: ValueError(1),
        lambda held: (held.add_note("a"), setattr(held, "__cause__", KeyError())),
        lambda h: (vars(h).copy(), h.__cause__, h.__suppress_context__),
    ),
    "structure with a pointer": (
        lambda: Pointing(1, None, Pair(2, 3.0)),
        lambda held: (setattr(held, "a", 7), setattr(held.pair, "a", 7)),
        lambda held: (held.a, held.pair.a),
    ),
    "distribution": (
        lambda: torch.distributions.Normal(torch.zeros(2), torch.ones(2)),
        lambda held: (held.scale.add_(1), setattr(held, "loc", held.loc + 1)),
        lambda held: (held.loc.tolist(), held.scale.tolist()),
    ),
    "memory": (
        lambda: torch.UntypedStorage(4).fill_(1),
        lambda held: (held.resize_(8), held.fill_(2)),
        lambda held: held.tolist(),
    ),
    "pruning": (
        _pruned,
        lambda held: held.add_pruning_method(held[0]),
        lambda held: len(held),
    ),
    "graph": (
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())),
        lambda held: (setattr(held, "graph", torch.fx.Graph()), held.recompile()),
        lambda held: (held.code, type(held).forward, str(held.graph)),
    ),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_objects_that_are_what_they_hold(kind):
    make, change, read = PLAIN[kind]
    held = make()
    before = read(held)
    run(lambda: change(held))
    assert read(held) == before


def test_logs_and_environment_lead_to_no_more():
    """A library is not walked because a model knows one of its objects."""
    held = [logging.getLogger("a"), os.environ, threading.current_thread(), mock.patch, np.mean]
    held += [
        np.mean,
        np.add,
        functools.partial,
        sys.stdout,
        collections.OrderedDict(),
        pathlib.Path(),
    ]
    assert len(Snapshot(held)._seen) < 200


def test_an_error_that_is_held_keeps_its_cause_where_it_is_raised():
    held = ValueError("held")

    def throw():
        raise held from KeyError("cause")

    with pytest.raises(ValueError, match="held") as caught:
        run(throw)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "pytest-bncheck: raised in" in held.__notes__[0]


SCALES = torch.tensor([0.1, 0.2], dtype=torch.double)


@pytest.mark.filterwarnings("ignore:.*quantize_per_channel:UserWarning")
def test_scales_of_channels():
    ones, zeros = torch.ones(2, 3), torch.zeros(2, dtype=torch.long)
    held = torch.quantize_per_channel(ones, SCALES, zeros, 0, torch.qint8)
    before = held.dequantize()
    run(lambda: (held.q_per_channel_scales().mul_(2), held.q_per_channel_zero_points().add_(1)))
    assert torch.equal(held.dequantize(), before)


@pytest.mark.parametrize("first", [True, False])
def test_hooks_of_tensors_between_layers(first):
    weight = torch.ones(3, requires_grad=True)
    between = weight * 2
    if first:
        between.register_hook(lambda gradient: gradient * 5)
    run(lambda: between.register_hook(lambda gradient: gradient * 3))
    (found,) = torch.autograd.grad(between.sum(), weight)
    assert found.tolist() == [10.0 if first else 2.0] * 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_a_script_holds_besides_numbers():
    class Logging(nn.Module):
        def __init__(self):
            super().__init__()
            self.log, self.tensors = [0], [torch.zeros(2)]
            self.written, self.replaced = torch.zeros(2), torch.zeros(2)
            self.register_buffer("buffer", torch.zeros(2))

        def forward(self, x):
            self.log.append(1)
            self.tensors.append(self.written + 1)
            self.written.add_(1)
            self.replaced = self.replaced + 1
            self.buffer = self.buffer + 1
            return x

    script = torch.jit.script(Logging())
    run(lambda: script(X))
    assert (script.log, len(script.tensors)) == ([0], 1)
    held = (*script.tensors, script.written, script.replaced, script.buffer)
    assert torch.stack(held).count_nonzero() == 0


# parts of functions, classes and exceptions -------------------------------------------------------


class Sized:
    def __len__(self):
        return 1


def test_special_methods_of_classes():
    held = Sized()
    run(lambda: (held, setattr(Sized, "__len__", lambda self: 2), setattr(Sized, "__bool__", len)))
    assert len(held) == 1
    assert "__bool__" not in vars(Sized)


def test_code_and_defaults_of_functions():
    def rate(k=1, *, j=2):
        return k + j

    def act():
        rate.__defaults__, rate.__kwdefaults__ = (5,), {"j": 6}
        rate.__code__ = (lambda k, j: 0).__code__

    before = rate.__code__, rate.__defaults__, rate.__kwdefaults__
    run(act)
    assert (rate.__code__, rate.__defaults__, rate.__kwdefaults__) == before
    assert rate() == 3


def test_a_cell_an_exception_and_a_context_of_decimals():
    cell, empty = types.CellType([1]), types.CellType()
    error, numbers = ValueError([1], 2), decimal.Context(prec=7)
    listed = error.args[0]

    def act():
        cell.cell_contents = empty.cell_contents = 3
        listed.append(2)
        error.args = (3,)
        numbers.prec, numbers.rounding = 2, decimal.ROUND_UP

    run(act, held=[cell, empty, error, numbers])
    assert cell.cell_contents == [1]
    with pytest.raises(ValueError, match="empty"):
        empty.cell_contents  # noqa: B018
    assert error.args == ([1], 2)
    assert (numbers.prec, numbers.rounding) == (7, decimal.Context().rounding)


def test_hooks_of_all_optimizers():
    held = sys.modules["torch.optim.optimizer"]._global_optimizer_post_hooks
    before = [*held]
    run(lambda: register_optimizer_step_post_hook(lambda *_: None))
    assert [*held] == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_statistics_that_a_step_takes_away(when):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def step(model, batch):
        if when == "before":
            model[1].running_mean = model[1].running_var = None
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        model[1].running_mean = model[1].running_var = None
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"1: the training sets its running statistics to None"):
        check(model, (X, Y), steps=2, train_step=step)
    assert model[1].running_mean.tolist() == [0] * 8


# switches of the process --------------------------------------------------------------------------


def _precisions():
    backends = torch.backends
    parts = (backends, backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
    return [getattr(part, "fp32_precision", None) for part in parts]


SWITCHES = {
    "nothing": lambda: None,
    "precision": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
    "precision, as of old": lambda: torch.set_float32_matmul_precision("medium"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "threads of gradients": lambda: torch.autograd.set_multithreading_enabled(False),
    "arguments": lambda: torch.distributions.Distribution.set_default_validate_args(False),
    "attention": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "format": lambda: torch.set_printoptions(precision=1),
    "numpy": lambda: (np.seterr(all="ignore"), np.set_printoptions(precision=1)),
}


@pytest.mark.parametrize("first", [None, "tf32"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_of_the_process(first, switch):
    def read():
        return (
            _precisions(),
            torch.get_num_threads(),
            torch.autograd.is_multithreading_enabled(),
            torch.distributions.Distribution._validate_args,
            torch.backends.mha.get_fastpath_enabled(),
            repr(torch.tensor(0.123456)),
            repr((np.geterr(), np.get_printoptions())),
        )

    found = _precisions()[1]
    if first is not None and found is not None:
        torch.backends.cuda.matmul.fp32_precision = first  # from here on the old way is closed
    try:
        before = read()
        run(SWITCHES[switch])
        assert read() == before
    finally:
        if found is not None:
            torch.backends.cuda.matmul.fp32_precision = found


# undoing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeoutError])
def test_an_undo_that_is_interrupted_is_made_again(error):
    done, interrupted = [], []

    def second():
        if not interrupted:
            interrupted.append(1)
            raise error
        done.append(2)

    with pytest.raises(error):
        run_all([lambda: done.append(1), second, lambda: done.append(3)])
    assert done == [1, 2, 3]


def test_an_undo_that_cannot_be_made_keeps_none_of_the_others_back():
    done = []

    def second():
        raise OSError("never")

    def third():
        raise ValueError("neither")

    with pytest.raises(OSError, match="never"):
        run_all([lambda: done.append(1), second, third, lambda: done.append(4)])
    assert done == [1, 4]


def test_random_states_are_put_back_where_that_is_interrupted(monkeypatch):
    state, write, before = RandomState.capture(), random.setstate, torch.get_rng_state().tolist()

    def interrupted(wanted):
        monkeypatch.setattr(random, "setstate", write)
        raise KeyboardInterrupt

    torch.rand(1)
    monkeypatch.setattr(random, "setstate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        state.restore()
    assert torch.get_rng_state().tolist() == before


# what cannot be used ------------------------------------------------------------------------------


def _endless(model, batch):
    outputs = [model(batch[0])]
    outputs.append(outputs)
    return outputs


UNUSABLE = {
    "a loss that reads like a number": ({"train_step": lambda m, b: "0.5"}, "returned a str"),
    "a loss beyond all floats": ({"train_step": lambda m, b: 10**400}, "returned an int"),
    "more steps than there are": ({"steps": 10**400}, r"allowed: .* to 10\*\*9"),
    "the class of a loss": ({"loss": nn.CrossEntropyLoss}, "allowed: a function loss"),
    "outputs that hold themselves": ({"forward": _endless}, "outputs: its containers hold them"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_used(kind):
    options, error = UNUSABLE[kind]
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with pytest.raises(InputError, match=error):
        check(model, (X, Y), **{"steps": 2, **options})
