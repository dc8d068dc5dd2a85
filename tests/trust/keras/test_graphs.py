"""What Keras training code holds is put back, wherever it is reachable."""

from __future__ import annotations

import functools
import gc
import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_graphs import KINDS, bits_of, remembered
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.graph import NotPutBack
from random_graphs import Holder, trial

rng = np.random.default_rng(0)
X = rng.normal(size=(24, 4)).astype("f4")
Y = (X[:, 0] > 0).astype("i4")


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_whatever_changes_in_a_random_graph_goes_back(first):
    for seed in range(first, first + 20):
        before, changed, after = trial(seed, KINDS, remembered)
        assert changed != before, seed
        assert after == before, seed


class Step:
    """A training step with all that one can hold; a pass in between draws numbers."""

    average = keras.metrics.Mean()

    def __init__(self, net):
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.parts = {"ema": [keras.models.clone_model(net)], "rng": np.random.default_rng(0)}
        self.counts = Holder()
        self.counts.steps = np.zeros(1)

    def __call__(self, model, batch):
        x, y = batch
        loss = self.loss(y, model(x, training=True))
        self.parts["rng"].random()
        self.counts.steps += 1
        self.average.update_state(1.0)
        for kept, now in zip(self.parts["ema"][0].weights, model.weights, strict=True):
            kept.assign(0.9 * kept + 0.1 * now)
        return loss

    def read(self):
        return (
            bits_of([*self.parts["ema"][0].weights, *self.average.variables]),
            self.parts["rng"].bit_generator.state,
            self.counts.steps.tolist(),
        )


class Noise(keras.layers.Layer):
    """Holds what Keras does not track."""

    def __init__(self):
        super().__init__()
        self.rng, self.seen, self.own = np.random.default_rng(0), np.zeros(2), Holder()
        self.own.calls = 0

    def call(self, x):
        self.seen += 1
        self.own.calls += 1
        return x + float(self.rng.random()) * 0

    def read(self):
        return self.rng.bit_generator.state, self.seen.tolist(), self.own.calls


def _net(*middle):
    last = keras.layers.Dense(2)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), *middle, last], name="net"
    )


FORMS = {
    "object": lambda step: step,
    "method": lambda step: step.__call__,
    "partial": lambda step: functools.partial(Step.__call__, step),
    "closure": lambda step: lambda model, batch: step(model, batch),
    "in a list": lambda step: (lambda held: lambda model, batch: held[0](model, batch))([step]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_step_leaves_nothing_moved(form):
    net = _net()
    step = Step(net)
    before = step.read()
    check(net, (X, Y), steps=2, train_step=FORMS[form](step))
    assert step.read() == before


def test_a_layer_gets_back_what_keras_does_not_track():
    noise = Noise()
    net = _net(noise)
    before = noise.read()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    check(net, (X, Y), steps=2)
    assert noise.read() == before


HELD = {
    "regularizer": (lambda: keras.regularizers.L2(0.1), "l2"),
    "constraint": (lambda: keras.constraints.MaxNorm(2), "max_value"),
    "initializer": (lambda: keras.initializers.RandomNormal(), "stddev"),
    "policy": (lambda: keras.DTypePolicy("float32"), "_compute_dtype"),
    "policies": (keras.dtype_policies.DTypePolicyMap, "_default_policy"),
    "specification": (lambda: keras.layers.InputSpec(ndim=2), "ndim"),
    "bar": (lambda: keras.utils.Progbar(9, verbose=0), "_seen_so_far"),
}


def test_objects_of_keras_get_their_attributes_back():
    held = {kind: make() for kind, (make, _) in HELD.items()}
    before = {kind: getattr(held[kind], name) for kind, (_, name) in HELD.items()}

    def step(model, batch):
        for kind, (_, name) in HELD.items():
            setattr(held[kind], name, 7)
        return keras.ops.mean(model(batch[0], training=True))

    check(_net(), (X, Y), steps=1, train_step=step)
    assert {kind: getattr(held[kind], name) for kind, (_, name) in HELD.items()} == before


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of torch")
def test_a_tensor_that_gets_another_shape_by_its_data():
    import torch

    class Other(keras.layers.Layer):
        def call(self, x):
            self.bank.data = torch.zeros(3)
            return x

    other = Other()
    other.__dict__["bank"] = bank = torch.ones(2)
    net = _net(other)
    bank.data = torch.ones(2)  # to build a network is to call its layers
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    check(net, (X, Y), steps=1)
    assert other.bank is bank
    assert bank.tolist() == [1, 1]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")
def test_arrays_of_jax_that_change_in_place():
    import jax

    held = jax.new_ref(jax.numpy.zeros(2)) if hasattr(jax, "new_ref") else np.zeros(2)

    def step(model, batch):
        held[0] = 5.0
        return keras.ops.mean(model(batch[0], training=True))

    check(_net(), (X, Y), steps=1, train_step=step)
    assert held[...].tolist() == [0, 0]


def _shared():
    names = ("safe_mode_saving", "flash_attention", "custom_objects_scope_dict", "name_scope_stack")
    state = keras.src.backend.common.global_state
    limits = [getattr(keras.config, name, int) for name in ("max_epochs", "max_steps_per_epoch")]
    return [
        *(repr(state.get_global_attribute(name)) for name in names),
        *(read() for read in limits),
    ]


def test_settings_and_scopes_of_keras():
    def step(model, batch):
        loss = keras.ops.mean(model(batch[0], training=True))
        keras.config.enable_unsafe_deserialization()
        keras.config.disable_flash_attention()
        for name in ("set_max_epochs", "set_max_steps_per_epoch"):
            getattr(keras.config, name, print)(3)
        keras.saving.CustomObjectScope({"own": Noise}).__enter__()
        keras.name_scope("left").__enter__()
        return loss

    with keras.name_scope("before"), keras.saving.CustomObjectScope({}):
        pass  # makes what is there to put back
    before = _shared()
    check(_net(), (X, Y), steps=1, train_step=step)
    assert _shared() == before
    assert keras.Variable(0.0, name="after").path == "after"


def test_switches_of_the_process():
    class Switches(keras.layers.Layer):
        def call(self, x):
            keras.config.disable_traceback_filtering()
            gc.disable()
            return x

    net = _net(Switches())
    keras.config.enable_traceback_filtering()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gc.enable()
    check(net, (X, Y), steps=1)
    assert keras.config.is_traceback_filtering_enabled()
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((np.where(X > 1, np.nan, X), Y), "holds NaN or infinity"),
        ((np.full((24, 4), None), Y), "dtype object"),
        ((np.full((24, 4), "2020-01-01", dtype="datetime64[D]"), Y), "dtype datetime64"),
        ((X, Y[:5]), "24 .* 5"),
    ],
)
def test_bad_input_gets_one_line(batch, words):
    net = _net()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(InputError, match=words):
        check(net, batch, steps=1)


@pytest.mark.parametrize(
    "batch",
    [(X.tolist(), Y.tolist()), (X[:, ::-1], Y), (X.astype(">f4"), Y), (X.astype("g"), Y)],
    ids=["lists", "negative strides", "foreign order of bytes", "long double"],
)
def test_usual_arrays_are_taken(batch):
    net = _net()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert check(net, batch, steps=1).error is None


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="tensors grow in PyTorch alone")
def test_a_tensor_that_grows_at_each_call():
    import torch

    class Growing(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.held = torch.zeros(3)

        def call(self, x, training=None):
            self.held.data = torch.cat([self.held.data, torch.ones(1)])
            return x

    layer = Growing()
    net = _net(layer)
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = layer.held.tolist()
    assert check(net, (X, Y), steps=4).error is None
    assert layer.held.tolist() == before


@pytest.mark.filterwarnings("ignore:`build..` was called on layer")
def test_what_a_pass_changes_that_builds_a_layer():
    class Counting(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = keras.layers.Dense(8), keras.layers.Dense(3)
            self.unused = keras.layers.Dense(2)
            self.log, self.count = [], 0

        def call(self, x, training=None):
            self.log.append(1)
            self.count += 1
            self.unused.trainable = False
            return self.last(self.first(x))

    net = Counting()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile("sgd", loss, run_eagerly=True)
    net(X)
    before = [*net.log], net.count
    net.unused.trainable = True
    check(net, (X, Y), steps=1)
    assert ([*net.log], net.count) == before
    assert net.unused.trainable
    assert not net.unused.built


TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")


@TENSORFLOW
def test_tables_averages_and_placement_of_tensorflow():
    import tensorflow as tf

    one, two = tf.constant([1, 2], tf.int64), tf.constant([1, 9], tf.int64)
    tables = (
        tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1),
        tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -1, -2),
    )
    for table in tables:
        table.insert(one, one * 5)
    averages, weight = tf.train.ExponentialMovingAverage(0.5), tf.Variable([0.0])
    averages.apply([weight])

    def step(model, batch):
        for table in tables:
            table.insert(two, two * 0)
            table.remove(one[1:])
        weight.assign_add([1.0])
        averages.apply([weight])
        tf.config.set_soft_device_placement(not placed)
        return keras.ops.mean(model(batch[0], training=True))

    placed = tf.config.get_soft_device_placement()
    check(_net(), (X, Y), steps=1, train_step=step)
    for table in tables:
        assert table.lookup(tf.constant([1, 2, 9], tf.int64)).numpy().tolist() == [5, 10, -1]
    assert (averages.average(weight).numpy().tolist(), weight.numpy().tolist()) == ([0], [0])
    assert tf.config.get_soft_device_placement() == placed


@TENSORFLOW
def test_switches_of_tensorflow():
    import tensorflow as tf
    from tensorflow.python.autograph.utils import ag_logging
    from tensorflow.python.data.ops import debug_mode
    from tensorflow.python.eager import context

    def read():
        return (
            tf.config.optimizer.get_jit(),
            tf.config.optimizer.get_experimental_options(),
            tf.summary.experimental.get_step(),
            tf.debugging.is_traceback_filtering_enabled(),
            (ag_logging.verbosity_level, debug_mode.DEBUG_MODE),
            (context.context().op_callbacks, context.context().scope_name),
        )

    def step(model, batch):
        loss = keras.ops.mean(model(batch[0], training=True))
        tf.config.optimizer.set_jit(True)
        tf.config.optimizer.set_experimental_options({"constant_folding": False})
        tf.summary.experimental.set_step(7)
        tf.debugging.disable_traceback_filtering()
        tf.autograph.set_verbosity(3)
        tf.data.experimental.enable_debug_mode()
        tf.debugging.enable_check_numerics()
        tf.name_scope("left").__enter__()
        return loss

    before = read()
    check(_net(), (X, Y), steps=1, train_step=step)
    assert read() == before


@TENSORFLOW
def test_queues_of_tensorflow_are_named_and_checkpoints_walked():
    import tensorflow as tf

    waiting, saved = tf.queue.FIFOQueue(9, tf.float32), tf.train.Checkpoint(a=tf.Variable(1.0))

    def step(model, batch):
        waiting.enqueue(1.0)
        saved.a.assign(3.0)
        return keras.ops.mean(model(batch[0], training=True))

    with pytest.warns(NotPutBack, match=r"\(queues\)"):
        check(_net(), (X, Y), steps=1, train_step=step)
    assert saved.a.numpy() == 1.0


@TENSORFLOW
def test_modules_of_tensorflow_get_their_variables_back():
    import tensorflow as tf

    module = tf.Module()
    module.held = [tf.Variable(1.0)]

    def step(model, batch):
        module.held[0].assign(3.0)
        return keras.ops.mean(model(batch[0], training=True))

    check(_net(), (X, Y), steps=1, train_step=step)
    assert module.held[0].numpy() == 1.0
