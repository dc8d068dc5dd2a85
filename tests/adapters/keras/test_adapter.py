"""The Keras adapter on the backend that KERAS_BACKEND names: small nets, milliseconds a step."""

from __future__ import annotations

import inspect
import os
import random

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras.src.backend.common import global_state

from passes import in_training, on_training_path, with_batch_statistics
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.adapters.keras.loss import match
from pytest_bncheck.adapters.random_state import fingerprint, seed_everything, seeded
from pytest_bncheck.types import InputError, Recipe, Statistics

BACKEND = keras.backend.backend()
host = keras.ops.convert_to_numpy
L = keras.layers


def images(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 3.0, (n, 6, 6, 2)).astype("float32"), np.arange(n) % 3


def functional(momentum=0.9, rate=0.0):
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, name="conv1")(inputs)
    x = L.BatchNormalization(momentum=momentum, name="conv1_bn")(x)
    x = L.ReLU()(x)
    x = L.Dropout(rate)(x)
    x = L.GlobalAveragePooling2D()(x)
    x = L.BatchNormalization(momentum=momentum, name="pool_bn")(x)
    return keras.Model(inputs, L.Dense(3)(x))


class Net(keras.Model):
    """Subclassed; attributes are not in the order in which they run."""

    def __init__(self):
        super().__init__()
        self.late = L.BatchNormalization(momentum=0.8, name="late")
        self.early = L.BatchNormalization(name="early")
        self.unused = L.BatchNormalization(name="unused")
        self.dense = L.Dense(4)
        self.head = L.Dense(3)
        self.unused.build((None, 4))

    def call(self, x, training=None):
        x = self.early(keras.ops.reshape(x, (-1, 72)), training=training)
        return self.head(self.late(self.dense(x), training=training))


class Deaf(keras.Model):
    """Its call takes no mode, so fit never trains its normalization."""

    def __init__(self):
        super().__init__()
        self.flatten, self.bn, self.head = L.Flatten(), L.BatchNormalization(), L.Dense(3)

    def call(self, x):
        return self.head(self.bn(self.flatten(x)))


@keras.saving.register_keras_serializable()
class Doubled(keras.Layer):
    """User code that takes another path in training."""

    def call(self, x, training=False):
        return x * 2.0 if training else x


class Renorm(L.BatchNormalization):
    """A user's own, used as the stock one."""


def nested():
    base = keras.Sequential([L.Conv2D(4, 3), L.BatchNormalization(name="conv1_bn")], name="base")
    return keras.Sequential([base, L.Flatten(), L.Dense(3)])


def shared():
    bn = L.BatchNormalization(momentum=0.7, name="twice")
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(bn(bn(inputs) * 3.0 + 1.0))))


labs = []


def adapter(model, batch=None, *, steps=0, device=None, expected=0, **recipe):
    lab = KerasAdapter(model, [images() if batch is None else batch], Recipe(**recipe), device)
    labs.append(lab)
    lab.expected_steps = expected
    lab.save()
    seed_everything(0)
    lab.begin()
    for _ in range(steps):
        lab.train_step(0)
    return lab


@pytest.fixture(autouse=True)
def _clean():
    keras.utils.set_random_seed(1)
    labs.clear()
    yield
    for lab in reversed(labs):  # a failed test leaves its adapter unrestored
        lab.restore()


def own_draws():
    """A random operation of the backend's own, with no seed, by its name; JAX has none."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return {"tf.random.random_normal(...)": lambda: tf.random.normal(())}
    if BACKEND == "torch":
        import torch

        return {"torch.randn(...)": lambda: torch.randn(())}
    return {}


OWN_DRAWS = own_draws()


def output(prediction):
    return prediction.outputs["output"]


def moments(x, axes):
    x = np.asarray(x, np.float64)
    return x.mean(axes), x.var(axes)


# batch statistics -------------------------------------------------------------------------------


def test_batch_statistics_are_the_batchs_own():
    model = functional(momentum=0.999)
    lab = adapter(model, steps=3)
    _, batch, calls = with_batch_statistics(lab)
    x = images()[0]
    h = host(model.layers[1](x))
    mean, var = moments(h, (0, 1, 2))
    np.testing.assert_allclose(batch.mean[0], mean, atol=1e-5)
    np.testing.assert_allclose(batch.var[0], var, rtol=1e-5)
    bn = model.get_layer("conv1_bn")
    normal = (h - mean) / np.sqrt(var + bn.epsilon) * bn.gamma.numpy()
    pooled = np.maximum(normal + bn.beta.numpy(), 0).mean((1, 2))
    np.testing.assert_allclose(batch.mean[1], pooled.mean(0), atol=1e-5)
    np.testing.assert_allclose(batch.var[1], pooled.var(0), rtol=1e-4)
    assert calls.training == (1, 1)
    assert calls.inference == (0, 0)
    assert calls.values == (16 * 4 * 4, 16)
    lab.restore()


@pytest.mark.parametrize("sigma", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("momentum", [1.0, 0.999, 0.0])
def test_batch_statistics_at_any_scale_and_momentum(sigma, momentum):
    x = np.random.default_rng(0).normal(0, sigma, (32, 5)).astype("float32")
    model = keras.Sequential([L.BatchNormalization(momentum=momentum), L.Dense(1)])
    lab = adapter(model, (x, x[:, :1]), steps=1)
    _, batch, _ = with_batch_statistics(lab)
    np.testing.assert_allclose(batch.var[0], x.astype("f8").var(0), rtol=1e-5)
    assert model.layers[0].momentum == momentum
    assert lab.layers()[0].update_rate == pytest.approx(1 - momentum)
    lab.restore()


def test_statistics_that_are_not_finite_do_not_spoil_the_batchs():
    model = functional()
    lab = adapter(model, steps=1)
    now = lab.read()
    lab.write(Statistics(tuple(m * np.nan for m in now.mean), now.var))
    prediction, batch, _ = with_batch_statistics(lab)
    assert np.isfinite(batch.mean[0]).all()
    assert np.isfinite(output(prediction)).all()
    assert np.isnan(lab.read().mean[0]).all()
    lab.restore()


@pytest.mark.parametrize("build", [functional, Net, nested, shared], ids=lambda f: f.__name__)
def test_exact_statistics_repeat_the_training_prediction(build):
    model = build()
    lab = adapter(model, steps=3)
    trained, batch, calls = with_batch_statistics(lab)
    before = lab.read()
    lab.write(batch, exact=True)
    if build is not shared:  # there one pair of statistics stands for two batches
        np.testing.assert_allclose(output(lab.predict(0)), output(trained), atol=1e-4, rtol=1e-4)
    for written, read in zip(batch.mean + batch.var, lab.read().mean + lab.read().var, strict=True):
        np.testing.assert_allclose(written, read, rtol=1e-6)
    lab.write(before)
    assert not np.allclose(output(lab.predict(0)), output(trained), atol=1e-4)
    assert lab.calls.training == tuple(3 * c for c in calls.training)
    lab.restore()


def test_shared_layer_gives_what_its_calls_lead_to():
    model = shared()
    lab = adapter(model)
    _, batch, calls = with_batch_statistics(lab)
    assert calls.training == (2,)
    with lab._subject.backend.nothing_traced():
        for _ in range(60):
            model(images()[0], training=True)
    np.testing.assert_allclose(lab.read().mean[0], batch.mean[0], atol=1e-4)
    np.testing.assert_allclose(lab.read().var[0], batch.var[0], rtol=1e-4)
    lab.restore()


def test_time_distributed_counts_every_step_of_time():
    x = np.random.default_rng(0).normal(size=(8, 3, 5)).astype("float32")
    model = keras.Sequential(
        [keras.Input((3, 5)), L.TimeDistributed(L.BatchNormalization()), L.Flatten(), L.Dense(1)]
    )
    lab = adapter(model, (x, x[:, 0, :1]), steps=2)
    assert lab.calls.training == (6,)
    assert lab.calls.values == (8,)
    _, batch, _ = with_batch_statistics(lab)
    decay = 0.99 ** np.arange(3)[::-1]
    np.testing.assert_allclose(
        batch.mean[0], decay @ x.astype("f8").mean(0) / decay.sum(), atol=1e-6
    )
    lab.restore()


@pytest.mark.filterwarnings("ignore:.*mask:UserWarning", "ignore:.*0-D tensors:UserWarning")
def test_mask_leaves_fewer_values():
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    x[:, 3:] = 0.0
    model = keras.Sequential([L.Masking(), L.BatchNormalization(), L.Flatten(), L.Dense(1)])
    lab = adapter(model, (x, x[:, 0, :1]))
    _, batch, calls = with_batch_statistics(lab)
    assert calls.values == (12,)
    np.testing.assert_allclose(batch.mean[0], x[:, :3].mean((0, 1)), atol=1e-5)
    lab.restore()


@pytest.mark.parametrize("subclass", [False, True])
def test_layers_that_use_their_statistics_in_training(subclass):
    if not subclass and "renorm" not in inspect.signature(L.BatchNormalization).parameters:
        pytest.skip("this Keras has no batch renormalisation of its own")
    x = np.random.default_rng(0).normal(3, 2, (32, 4)).astype("float32")
    bn = Renorm() if subclass else L.BatchNormalization(renorm=True)
    lab = adapter(keras.Sequential([bn, L.Dense(1)]), (x, x[:, :1]), steps=2)
    before = [v.numpy() for v in bn.variables]
    _, batch, _ = with_batch_statistics(lab)
    assert not lab.layers()[0].stock
    np.testing.assert_allclose(batch.mean[0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(batch.var[0], x.var(0), rtol=1e-3)
    assert all((v.numpy() == old).all() for v, old in zip(bn.variables, before, strict=True))
    lab.restore()


def test_batch_statistics_pass_has_dropout_off_and_the_training_pass_on():
    lab = adapter(functional(rate=0.5), steps=2)
    assert lab.stochastic
    first, quiet, _ = with_batch_statistics(lab)
    again, _, _ = with_batch_statistics(lab)
    np.testing.assert_array_equal(output(first), output(again))
    assert not first.random
    noisy = in_training(lab)
    np.testing.assert_allclose(noisy.mean[0], quiet.mean[0], atol=1e-6)
    assert np.abs(noisy.var[1] - quiet.var[1]).max() > 1e-3
    lab.restore()


def test_without_dropout_both_passes_agree_and_nothing_is_stochastic():
    lab = adapter(functional(), steps=2)
    assert not lab.stochastic
    before = lab.read()
    np.testing.assert_array_equal(in_training(lab).var[1], with_batch_statistics(lab)[1].var[1])
    np.testing.assert_array_equal(lab.read().mean[0], before.mean[0])
    lab.restore()


@pytest.mark.parametrize("draw", [*OWN_DRAWS.values(), random.random, np.random.rand])
def test_every_source_of_chance_is_seen(draw):
    class Noisy(keras.Layer):
        def call(self, x):
            return x + draw()

    lab = adapter(keras.Sequential([L.Flatten(), Noisy(), L.Dense(3)]), steps=1)
    assert lab.stochastic
    assert lab.predict(0).random
    lab.restore()


# training ---------------------------------------------------------------------------------------


def test_history_is_the_moving_average_of_the_batch_statistics():
    lab = adapter(functional(momentum=0.8))
    seen = []
    for _ in range(4):
        seen.append(with_batch_statistics(lab)[1])
        lab.train_step(0)
    assert len(lab.history) == 5
    assert len(lab.losses) == 4
    for k in range(2):
        r = np.zeros_like(seen[0].mean[k]), np.ones_like(seen[0].mean[k])
        for step, batch in enumerate(seen):
            r = 0.8 * r[0] + 0.2 * batch.mean[k], 0.8 * r[1] + 0.2 * batch.var[k]
            np.testing.assert_allclose(lab.history[step + 1].mean[k], r[0], atol=1e-5)
            np.testing.assert_allclose(lab.history[step + 1].var[k], r[1], rtol=1e-5)
    lab.restore()


def test_a_step_is_the_one_of_fit():
    model = functional()
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    start = model.get_weights()
    lab = adapter(model, steps=3)
    trained = model.get_weights()
    lab.restore()
    assert all((a == b).all() for a, b in zip(start, model.get_weights(), strict=True))
    x, y = images()
    losses = [float(model.train_on_batch(x, y)) for _ in range(1)]
    assert lab.losses[0] == pytest.approx(losses[0], rel=1e-5)
    for _ in range(2):
        model.train_on_batch(x, y)
    for a, b in zip(trained, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_penalties_are_trained_on_but_not_logged():
    def build(penalty):
        keras.utils.set_random_seed(3)
        return keras.Sequential([L.Flatten(), L.Dense(3, kernel_regularizer=penalty)])

    plain, penalised = build(None), build(keras.regularizers.L2(10.0))
    both = [
        adapter(model, steps=1, optimizer=keras.optimizers.SGD(0.01))
        for model in (plain, penalised)
    ]
    assert both[0].losses == both[1].losses
    norms = [np.abs(model.layers[1].kernel.numpy()).sum() for model in (plain, penalised)]
    assert norms[1] < norms[0] * 0.95
    for lab in reversed(both):
        lab.restore()


def test_mixed_precision_scales_the_loss():
    with_scale = keras.dtype_policies.DTypePolicy("mixed_float16")
    model = keras.Sequential(
        [L.Flatten(), L.Dense(4, dtype=with_scale), L.BatchNormalization(dtype=with_scale),
         L.Dense(3, dtype="float32")]
    )  # fmt: skip
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05))
    lab = adapter(model, steps=8, optimizer=optimizer)
    assert lab.losses[-1] < lab.losses[0]
    assert not optimizer.built
    assert lab.layers()[0].dtype == "float32"
    lab.restore()


def test_optimizers():
    made = []

    def make(params):
        made.append(params)
        return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))

    lab = adapter(functional(), steps=1, optimizer=make)
    assert len(made[0]) == len(lab._subject.model.trainable_variables)
    lab.restore()
    own = keras.optimizers.SGD(0.1)
    adapter(functional(), steps=1, optimizer=own).restore()
    assert not own.built
    with pytest.raises(InputError, match=r"optimizer=.*got builtins\.str"):
        adapter(functional(), optimizer="adam")
    with pytest.raises(InputError, match=r"a function that returned builtins\.int"):
        adapter(functional(), optimizer=lambda params: 3)


def test_own_train_step_and_forward():
    model = functional()
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(True))
    lab = adapter(
        model,
        {"image": images()[0], "label": images()[1]},
        steps=3,
        train_step=lambda m, b: m.train_on_batch(b["image"], b["label"]),
        forward=lambda m, b: m(b["image"]),
    )
    assert lab.calls.training == (3, 3)
    trained, batch, calls = with_batch_statistics(lab)
    assert calls.training == (1, 1)
    assert trained.loss is None
    assert in_training(lab).mean[0] == pytest.approx(batch.mean[0])
    lab.restore()
    assert model.train_function is None
    assert not model.optimizer.built
    assert int(model.optimizer.iterations) == 0


def test_forward_is_called_in_the_mode_of_the_step():
    def forward(model, batch):
        return model(batch[0])

    both = [adapter(functional(), steps=2, **recipe) for recipe in ({}, {"forward": forward})]
    assert both[1].calls.training == (2, 2)
    assert with_batch_statistics(both[1])[2].training == (1, 1)
    for lab in reversed(both):
        lab.restore()


def test_train_step_must_return_a_loss():
    with pytest.raises(InputError, match="train_step= must return the loss as a number, got None"):
        adapter(functional(), steps=1, train_step=lambda model, batch: None)


# layers -----------------------------------------------------------------------------------------


def test_layers_are_in_the_order_of_their_calls():
    lab = adapter(Net(), steps=1)
    assert [layer.name for layer in lab.layers()] == ["early", "late", "unused"]
    assert [layer.momentum for layer in lab.layers()] == [0.99, 0.8, 0.99]
    assert lab.calls.training == (1, 1, 0)
    assert lab.calls.values == (16, 16, None)
    assert [len(m) for m in lab.history[1].mean] == [72, 4, 4]
    lab.restore()


def test_nested_layers_have_paths():
    lab = adapter(nested())
    assert [layer.name for layer in lab.layers()] == ["base/conv1_bn"]
    lab.restore()


def test_frozen_layers_stay_in_inference_mode():
    model = functional()
    model.get_layer("conv1_bn").trainable = False
    lab = adapter(model, steps=2)
    assert [layer.frozen for layer in lab.layers()] == [True, False]
    assert lab.calls.training == (0, 2)
    assert lab.calls.inference == (2, 0)
    _, batch, calls = with_batch_statistics(lab)
    assert calls.training == (0, 1)
    np.testing.assert_array_equal(batch.mean[0], lab.read().mean[0])
    np.testing.assert_array_equal(lab.history[0].mean[0], lab.history[2].mean[0])
    lab.restore()
    assert not model.get_layer("conv1_bn").trainable


def test_model_without_training_argument_never_updates():
    lab = adapter(Deaf(), steps=2)
    assert lab.calls.training == (0,)
    assert lab.calls.inference == (2,)
    np.testing.assert_array_equal(lab.history[2].mean[0], 0.0)
    trained, _, calls = with_batch_statistics(lab)
    assert calls.training == (0,)
    np.testing.assert_array_equal(output(trained), output(lab.predict(0)))
    lab.restore()


def test_without_steps_all_trainable_layers_use_batch_statistics():
    lab = adapter(functional())
    assert with_batch_statistics(lab)[2].training == (1, 1)
    assert lab.losses == []
    lab.restore()


def test_trained_tells_a_checkpoint_from_a_fresh_model():
    model = functional()
    model.get_layer("pool_bn").gamma.assign([2.0] * 4)
    lab = adapter(model)
    assert [layer.trained for layer in lab.layers()] == [False, True]
    lab.restore()


# paths ------------------------------------------------------------------------------------------


def test_training_path_shows_user_code_that_knows_the_mode():
    inputs = keras.Input((6, 6, 2))
    x = L.Dropout(0.5)(L.BatchNormalization()(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(Doubled()(x))))
    lab = adapter(model, steps=2)
    trained, _, _ = with_batch_statistics(lab)
    path = on_training_path(lab)
    assert not path.random
    assert not path.mutated
    assert np.abs(output(path) - output(trained)).max() > 0.1
    lab.restore()


def test_training_path_is_the_same_with_layers_of_keras():
    inputs = keras.Input((6, 8))
    x = L.SpectralNormalization(L.Dense(8))(L.BatchNormalization()(inputs))
    x = L.MultiHeadAttention(2, 4, dropout=0.5)(x, x)
    x = L.LSTM(4, dropout=0.5, recurrent_dropout=0.5)(L.GaussianNoise(1.0)(x))
    model = keras.Model(inputs, L.Dense(2)(L.Dropout(0.5)(x)))
    rng = np.random.default_rng(0)
    lab = adapter(model, (rng.normal(size=(8, 6, 8)), np.arange(8) % 2), steps=2)
    trained, _, _ = with_batch_statistics(lab)
    path = on_training_path(lab)
    assert not path.random
    assert not path.mutated
    np.testing.assert_array_equal(output(path), output(trained))
    lab.restore()


def test_training_path_leaves_frozen_layers_alone():
    model = functional()
    model.get_layer("conv1_bn").trainable = False
    lab = adapter(model, steps=3)
    trained, _, _ = with_batch_statistics(lab)
    np.testing.assert_array_equal(output(on_training_path(lab)), output(trained))
    lab.restore()


class Counting(keras.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        self.count.assign_add(1.0)
        return x


class Dropping(keras.Layer):
    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, x):
        return keras.random.dropout(x, 0.5, seed=self.seeds)


class Always(keras.Layer):
    """Hard-wires training mode where a functional model cannot overrule it."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x, training=True)


def test_predict_notes_chance_and_change():
    for layer, flags in (
        (Counting(name="counting"), (False, ("counting.count",))),
        (Dropping(), (True, ())),
        (Always(L.BatchNormalization(name="bn"), name="always"),
         (False, ("always/bn.moving_mean", "always/bn.moving_variance"))),
    ):  # fmt: skip
        lab = adapter(keras.Sequential([L.Flatten(), layer, L.Dense(3)]), steps=1)
        prediction = lab.predict(0)
        assert (prediction.random, prediction.mutated) == flags
        lab.restore()


def test_calls_that_train_in_eval_mode_are_named():
    always = Always(L.BatchNormalization(name="bn"), name="always")
    model = keras.Sequential(
        [L.Flatten(), always, Always(L.Dropout(0.5, name="drop"), name="also"), L.Dense(3)]
    )
    lab = adapter(model, steps=1)
    assert lab.predict(0).in_training == ()  # the mode is an argument, not a layer's state
    found = lab.trace(0)
    assert [(t.kind, t.module) for t in found] == [
        ("batch statistics", "always/bn"), ("random", "also/drop"),
    ]  # fmt: skip
    assert found[0].call == "keras.layers.BatchNormalization(...)(x, training=True)"
    assert found[1].call == "keras.layers.Dropout(0.5)(x, training=True)"
    assert all("return self.inner(x, training=True)" in t.source for t in found)
    assert found[0].source.startswith("test_keras.py:")
    lab.restore()


@pytest.mark.parametrize(
    ("call", "draw"),
    [
        # Keras refuses to train with it on JAX.
        *[("keras.random.dropout(...)", lambda x: keras.random.dropout(x, 0.5))][
            BACKEND == "jax" :
        ],
        *((name, lambda x, draw=draw: x + draw()) for name, draw in OWN_DRAWS.items()),
        ("random numbers of Python or numpy", lambda x: x * np.random.rand()),
    ],
)
def test_trace_finds_the_line_that_draws(call, draw):
    class Noisy(keras.Layer):
        def call(self, x):
            return draw(x)

    inner = keras.Sequential([Noisy(name="noisy")], name="inner")
    lab = adapter(keras.Sequential([L.Flatten(), inner, L.Dropout(0.5), L.Dense(3)]), steps=1)
    (found,) = lab.trace(0)
    assert (found.kind, found.module, found.call) == ("random", "inner/noisy", call)
    assert found.source.startswith("test_keras.py:")
    assert keras.random.SeedGenerator.next.__module__.startswith("keras.")
    lab.restore()


def test_nothing_trains_in_the_eval_mode_of_keras_own_layers():
    model = keras.Sequential(
        [L.BatchNormalization(), L.LSTM(4, dropout=0.5, recurrent_dropout=0.5), L.Dropout(0.5),
         L.Dense(2)]
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(8, 6, 3))
    lab = adapter(model, (x, np.arange(8) % 2), steps=1)
    assert lab.stochastic
    assert lab.idle == []
    prediction = lab.predict(0)
    assert (prediction.random, prediction.mutated, prediction.in_training) == (False, (), ())
    assert lab.trace(0) == []
    assert lab.sticky(0) == []
    lab.restore()


def test_idle_layers():
    class Forgetful(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn, self.drop = L.BatchNormalization(name="bn"), L.Dropout(0.5, name="drop")
            self.heard, self.zero = L.Dropout(0.5, name="heard"), L.Dropout(0.0, name="zero")
            self.frozen = L.BatchNormalization(name="frozen", trainable=False)
            self.flatten, self.head = L.Flatten(), L.Dense(3)

        def call(self, x, training=None):
            x = self.frozen(self.bn(self.flatten(x), training=False), training=training)
            x = self.zero(self.drop(x, training=False), training=False)
            return self.head(self.heard(x, training=training))

    # The mode gets to the model: what it tells its layers then is its design.
    lab = adapter(Forgetful(), steps=2)
    assert lab.idle == []
    assert [layer.name for layer in lab.layers() if layer.frozen] == ["bn", "frozen"]

    def train_step(model, batch):
        return keras.ops.mean(model(batch[0]))

    lab = adapter(Forgetful(), steps=2, train_step=train_step)
    assert lab.idle == ["bn", "drop", "heard"]
    assert [layer.name for layer in lab.layers() if layer.frozen] == ["frozen"]
    lab.restore()


def test_half_a_batch():
    lab = adapter(functional(), steps=2)
    whole, half = lab.predict(0), lab.predict_half(0)
    np.testing.assert_allclose(output(half), output(whole)[:8], atol=1e-5)
    assert half.structure == whole.structure
    assert half.loss is None  # nothing asks for it, and on JAX it would be a program
    lab.restore()
    lab = adapter(functional(), images(n=1))
    assert lab.predict_half(0) is None
    lab.restore()

    class OneSize(keras.Layer):
        def call(self, x):
            return keras.ops.reshape(x, (16, 72))

    lab = adapter(keras.Sequential([OneSize(), L.Dense(3)]), steps=1)
    whole, half = lab.predict(0), lab.predict_half(0)
    if BACKEND == "jax":  # the half over again takes the place of the other half
        np.testing.assert_allclose(output(half), output(whole)[:8], atol=1e-5)
    else:
        assert half is None
    lab.restore()


@pytest.mark.parametrize(("matters", "found"), [(True, ["sticky.scale"]), (False, [])])
def test_attributes_that_stick(matters, found):
    class Sticky(keras.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.scale, self.count = 2.0, 0

        def call(self, x, training=False):
            self.count += 1
            if not training:
                self.scale = 1.0
            return x * self.scale if matters else x

    inputs = keras.Input((6, 6, 2))
    sticky = Sticky(name="sticky")
    x = L.Dropout(0.5)(sticky(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    sticky.scale = 2.0
    lab = adapter(model, steps=2)
    lab.predict(0)
    variables = bits(model.variables)
    count = sticky.count
    assert lab.sticky(0) == found
    assert bits(model.variables) == variables
    assert (sticky.count, sticky.scale) == (count, 1.0)
    lab.restore()
    assert sticky.scale == 2.0


def test_frozen_parameters():
    def build(*frozen):
        model = keras.Sequential(
            [keras.Input((4,)), L.Dense(4, name="first"), L.BatchNormalization(name="bn"),
             L.Dense(3, name="last")]
        )  # fmt: skip
        for name in frozen:
            for variable in model.get_layer(name).trainable_variables:
                variable.trainable = False
        return model

    for frozen, expected in (((), False), (("bn",), False), (("first", "bn"), True)):
        lab = adapter(build(*frozen), (X, INDICES))
        assert lab.layers()[0].frozen_parameters is expected
        lab.restore()


def test_noise_is_larger_in_half_precision():
    assert adapter(head(3), (X, INDICES)).noise == 1e-4
    dtype = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, dtype=dtype)])
    assert KerasAdapter(model, [(X, INDICES)], Recipe(), None).noise == 1e-4
    model.dtype_policy = dtype
    assert KerasAdapter(model, [(X, INDICES)], Recipe(), None).noise == 5e-2


def test_outputs_of_any_structure():
    inputs = keras.Input((6, 6, 2))
    flat = L.Flatten()(inputs)
    model = keras.Model(inputs, {"a": L.Dense(3)(flat), "b": [L.Dense(2)(flat), flat]})
    lab = adapter(model, loss=lambda outputs, targets: keras.ops.square(outputs["a"]))
    prediction = lab.predict(0)
    assert {k: v.shape for k, v in prediction.outputs.items()} == {
        "a": (16, 3), "b/0": (16, 2), "b/1": (16, 72),
    }  # fmt: skip
    assert prediction.structure.count("float32[B, ") == 3
    assert prediction.accuracy is None
    assert prediction.loss == pytest.approx((prediction.outputs["a"] ** 2).mean(), rel=1e-5)
    lab.restore()


# restoring --------------------------------------------------------------------------------------


def bits(variables):
    return [host(v.value).tobytes() for v in variables]


def state_of(model):
    from keras.src.backend.common import global_state

    layers = model._flatten_layers()
    return {
        "variables": bits(model.variables),
        "trainable": [layer.trainable for layer in layers],
        "calls": ["call" in vars(layer) for layer in layers],
        "attributes": [sorted(vars(layer)) for layer in layers],
        "losses": [len(layer._losses) for layer in layers],
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "generators": fingerprint(),
        "names": dict(global_state.get_global_attribute("object_name_uids")),
        "generator": id(global_state.get_global_attribute("global_seed_generator")),
    }


def test_everything_is_as_found():
    model = functional(rate=0.5)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    x, y = images()
    model.train_on_batch(x, y)
    keras.random.normal((2,))
    optimizer, before = model.optimizer, state_of(model)
    moments_before = bits(optimizer.variables + model.metrics_variables)
    functions = model.train_function, model.predict_function
    with seeded(0):
        lab = adapter(model, steps=2)
        assert state_of(model) != before
        with_batch_statistics(lab)
        in_training(lab)
        on_training_path(lab)
        lab.predict(0)
        lab.restore()
    assert state_of(model) == before
    assert model.optimizer is optimizer
    assert bits(optimizer.variables + model.metrics_variables) == moments_before
    assert (model.train_function, model.predict_function) == functions
    np.testing.assert_array_equal(x, images()[0])


def test_random_numbers_go_on_as_if_nothing_had_been():
    def draws():
        return (
            random.random(),
            np.random.rand(),
            *(float(draw()) for draw in OWN_DRAWS.values()),
            float(keras.random.normal(())),
        )

    def seed():
        keras.utils.set_random_seed(5)
        global_state.set_global_attribute("global_seed_generator", None)  # Keras 3.7 keeps it

    seed()
    draws()
    expected = draws()
    # Building a model draws from Python's generator, so it is built before.
    model = functional(rate=0.5)
    seed()
    draws()
    with seeded(0):
        adapter(model, steps=1).restore()
    assert draws() == expected


def test_the_same_seed_gives_the_same_training():
    model = functional(rate=0.5)
    losses = []
    for _ in range(2):
        lab = adapter(model, steps=3)
        losses.append(lab.losses)
        lab.restore()
    assert losses[0] == losses[1]


class Late(keras.Layer):
    """Draws the seed of its weights as late as it can."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), initializer="random_normal")

    def call(self, x):
        return x @ self.kernel


def test_seeding_before_saving_builds_the_same_weights():
    found = []
    for noise in range(2):
        keras.utils.set_random_seed(noise)
        model = keras.Sequential([L.Flatten(), Late()])
        before = random.getstate()
        with seeded(0):
            lab = KerasAdapter(model, [images()], Recipe(), None)
            lab.save()
            found.append(model.get_weights()[0])
            lab.restore()
        assert random.getstate() == before
    np.testing.assert_array_equal(*found)


def test_weights_can_be_kept():
    model = functional(rate=0.5)
    before = state_of(model)
    with seeded(0):
        lab = adapter(model, steps=2)
        trained = model.get_weights()
        lab.restore(keep_weights=True)
    after = state_of(model)
    assert all((a == b).all() for a, b in zip(trained, model.get_weights(), strict=True))
    assert before.pop("variables") != after.pop("variables")
    assert before == after


class Fragile(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn, self.flatten, self.head = L.BatchNormalization(), L.Flatten(), L.Dense(3)
        self.calls, self.break_at = [], None

    def call(self, x, training=None):
        self.calls.append(training)
        x = self.bn(x, training=training)
        if len(self.calls) == self.break_at:
            raise ZeroDivisionError("the user's own")
        return self.head(self.flatten(x))


@pytest.mark.parametrize("break_at", [1, 2, 3, 4, 5])
def test_everything_is_as_found_after_an_exception(break_at):
    model = Fragile()
    model(images()[0])
    model.calls.clear()
    model.break_at = break_at
    before = state_of(model)
    lab = KerasAdapter(model, [images()], Recipe(), None)

    def experiment():
        lab.save()
        lab.begin()
        lab.train_step(0)
        lab.train_step(0)
        with_batch_statistics(lab)
        on_training_path(lab)
        lab.predict(0)

    with seeded(0):
        with pytest.raises(ZeroDivisionError, match="the user's own"):
            experiment()
        lab.restore()
    assert state_of(model) == before
    assert model.calls == []


def test_an_exception_while_building_leaves_nothing_behind():
    model = Fragile()
    model.break_at = 2  # in the first, symbolic call Keras swallows it
    lab = KerasAdapter(model, [images()], Recipe(), None)
    with pytest.raises(ZeroDivisionError):
        lab.save()
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_unbuilt_models_are_built():
    model = keras.Sequential([L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(3)])
    assert not model.built
    lab = adapter(model, steps=2)
    assert lab.calls.training == (2,)
    lab.restore()
    np.testing.assert_array_equal(model.layers[1].moving_mean.numpy(), 0.0)


# loss and accuracy ------------------------------------------------------------------------------


def head(units, activation=None):
    return keras.Sequential([keras.Input((4,)), L.Dense(units, activation=activation)])


X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
INDICES = np.arange(12) % 3
ONE_HOT = np.eye(3, dtype="float32")[INDICES]
ZERO_ONE = np.arange(12) % 2
SPARSE = keras.losses.sparse_categorical_crossentropy
DENSE = keras.losses.categorical_crossentropy
BINARY = keras.losses.binary_crossentropy


def expected_loss(loss, targets, outputs, **kwargs):
    return float(np.mean(host(loss(np.asarray(targets), host(outputs), **kwargs))))


@pytest.mark.parametrize(
    ("model", "targets", "loss", "logits"),
    [
        (head(3), INDICES, SPARSE, True),
        (head(3), list(map(int, INDICES)), SPARSE, True),
        (head(3), INDICES[:, None], SPARSE, True),
        (head(3, "softmax"), INDICES, SPARSE, False),
        (keras.Sequential([*head(3).layers, L.Softmax()]), INDICES, SPARSE, False),
        (keras.Sequential([*head(3).layers, L.Activation("softmax")]), INDICES, SPARSE, False),
        (keras.Sequential([*head(3, "softmax").layers, L.Reshape((3,))]), INDICES, SPARSE, False),
        (head(3), ONE_HOT, DENSE, True),
        (head(3, "softmax"), ONE_HOT.astype("float64"), DENSE, False),
        (head(1), ZERO_ONE, BINARY, True),
        (head(1), ZERO_ONE.astype(bool), BINARY, True),
        (head(1, "sigmoid"), ZERO_ONE, BINARY, False),
        (head(1, "sigmoid"), ZERO_ONE[:, None].astype("float32"), BINARY, False),
    ],
)
def test_loss_is_inferred(model, targets, loss, logits):
    lab = adapter(model, (X, targets), steps=1)
    outputs = model(X)
    lab.restore()
    outputs = model(X)
    shaped = np.asarray(targets).reshape(12, 1) if loss is BINARY else np.asarray(targets)
    want = expected_loss(loss, shaped, outputs, from_logits=logits)
    assert lab.losses[0] == pytest.approx(want, rel=1e-4)
    found = adapter(model, (X, targets))
    prediction = found.predict(0)
    found.restore()
    assert prediction.loss == pytest.approx(want, rel=1e-4)
    if loss is BINARY:
        right = (host(outputs)[:, 0] > (0 if logits else 0.5)) == ZERO_ONE
    else:
        right = host(outputs).argmax(-1) == INDICES
    assert prediction.accuracy == pytest.approx(right.mean())
    mean = np.broadcast_to(host(outputs).mean(0), outputs.shape)
    want = expected_loss(loss, shaped, mean, from_logits=logits)
    assert prediction.constant_loss == pytest.approx(want, rel=1e-4)


def test_real_targets_are_regression():
    targets = X[:, :2] * 2.0
    for units, target in ((2, targets), (1, targets[:, 0]), (1, targets[:, :1])):
        model = head(units)
        lab = adapter(model, (X, target))
        prediction = lab.predict(0)
        lab.restore()
        error = output(prediction) - target.reshape(12, units)
        assert prediction.loss == pytest.approx((error**2).mean(), rel=1e-5)
        assert prediction.accuracy is None


def test_softmax_of_a_subclassed_model_by_hand():
    class ByHand(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(3)

        def call(self, x):
            return keras.ops.softmax(self.dense(x))

    model = ByHand()
    lab = adapter(model, (X, INDICES), steps=1)
    lab.restore()
    assert lab.losses[0] == pytest.approx(expected_loss(SPARSE, INDICES, model(X)), rel=1e-4)


def test_one_column_of_values_between_zero_and_one_is_still_logits():
    model = head(1)
    model.layers[0].kernel.assign(np.zeros((4, 1)))
    model.layers[0].bias.assign([0.7])
    lab = adapter(model, (X, ZERO_ONE))
    assert lab.predict(0).loss == pytest.approx(
        expected_loss(BINARY, ZERO_ONE[:, None], model(X), from_logits=True), rel=1e-4
    )
    lab.restore()


def test_segmentation_is_per_pixel():
    x, _ = images()
    labels = np.random.default_rng(0).integers(0, 3, (16, 6, 6))
    model = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(3, 1)])
    lab = adapter(model, (x, labels), steps=1)
    lab.restore()
    outputs = host(model(x))
    assert lab.losses[0] == pytest.approx(
        expected_loss(SPARSE, labels, outputs, from_logits=True), rel=1e-4
    )
    lab = adapter(model, (x, labels[..., None]))
    assert lab.predict(0).accuracy == pytest.approx((outputs.argmax(-1) == labels).mean())
    lab.restore()


@pytest.mark.parametrize(("label", "compiled"), [(3, False), (-1, False), (3, True)])
def test_labels_outside_the_range(label, compiled):
    model = head(3)
    if compiled:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    targets = INDICES.copy()
    targets[5] = label
    with pytest.raises(InputError, match=rf"batch's targets .* label {label}, .* 0\.\.2"):
        adapter(model, (X, targets), steps=1)


def test_ignored_labels_are_allowed():
    model = head(3)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255))
    targets = INDICES.copy()
    targets[5] = 255
    lab = adapter(model, (X, targets), steps=1)
    assert np.isfinite(lab.losses[0])
    lab.restore()


@pytest.mark.parametrize(
    ("shape", "targets"),
    [
        ((12, 3), np.zeros((12, 2))),
        ((12, 3), np.zeros((12, 3), int) + 5),
        ((12, 3), np.zeros(11, int)),
        ((12, 1), np.zeros((12, 2))),
        ((12, 3), np.zeros(12)),
    ],
)
def test_targets_that_do_not_fit(shape, targets):
    with pytest.raises(InputError, match="override bncheck_loss, for example"):
        match(shape, targets)


def test_one_column_wants_zero_and_one():
    with pytest.raises(InputError, match=r"label 2, but for one column .* 0\.\.1"):
        match((12, 1), np.arange(12) % 3)


def test_own_loss_is_averaged_and_its_accuracy_kept():
    model = head(3)
    lab = adapter(model, (X, INDICES), loss=lambda o, t: SPARSE(t, o, from_logits=True), steps=1)
    lab.restore()
    assert lab.losses[0] == pytest.approx(
        expected_loss(SPARSE, INDICES, model(X), from_logits=True), rel=1e-4
    )
    assert lab.predict(0).accuracy is not None
    with pytest.raises(InputError, match="loss= returned None"):
        adapter(head(3), (X, INDICES), loss=lambda o, t: None, steps=1)


def test_loss_cut_off_from_the_weights():
    with pytest.raises(InputError, match="does not depend on any trainable weight"):
        adapter(head(3), (X, INDICES), loss=lambda o, t: keras.ops.max(t), steps=1)


@pytest.mark.parametrize("kind", ["mse", "named", "two outputs"])
def test_compiled_losses(kind):
    if kind == "two outputs":
        inputs = keras.Input((4,))
        model = keras.Model(inputs, [L.Dense(3, name="a")(inputs), L.Dense(1, name="b")(inputs)])
        sparse = keras.losses.SparseCategoricalCrossentropy(True)
        model.compile("sgd", [sparse, "mse"], loss_weights=[1.0, 0.5])
        targets = [INDICES, X[:, :1]]
    else:
        model = head(2)
        model.compile("sgd", "mse" if kind == "mse" else keras.losses.Huber(), metrics=["mae"])
        targets = X[:, :2]
    want = model.test_on_batch(X, targets)
    want = want[0] if isinstance(want, (list, tuple)) else want
    metrics = bits(model.metrics_variables)
    lab = adapter(model, (X, targets), steps=2)
    prediction = lab.predict(0)
    lab.restore()
    assert lab.losses[0] == pytest.approx(float(want), rel=1e-5)
    assert prediction.accuracy is None
    assert (prediction.constant_loss is None) == (kind == "two outputs")
    assert bits(model.metrics_variables) == metrics


def test_own_compute_loss_is_used():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(1)

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(y_pred - 3.0))

    model = Own()
    lab = adapter(model, (X, ZERO_ONE), steps=1)
    lab.restore()
    assert lab.losses[0] == pytest.approx(float(np.mean((host(model(X)) - 3.0) ** 2)))


# what is handed over ----------------------------------------------------------------------------


def test_batches_of_every_kind():
    x, y = images()
    two = [keras.Input((6, 6, 2), name="p"), keras.Input((6, 6, 2), name="q")]
    model = keras.Model(two, L.Dense(3)(L.Flatten()(two[0] + two[1])))
    by_name = keras.Model({"p": two[0], "q": two[1]}, model.output)
    for net, inputs in (
        (model, [x, x]),
        (model, (x, keras.ops.convert_to_tensor(x))),
        (by_name, {"p": x, "q": x}),
    ):
        lab = adapter(net, (inputs, y), steps=1)
        assert lab.batch_size == 16
        lab.restore()
    wide = x.astype("float64")
    lab = adapter(functional(), [wide, y])
    assert lab.predict(0).structure == "float32[B, 3]"
    lab.restore()


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("key", ["labels", "targets", "y"])
def test_a_dictionary_holds_its_targets(key):
    x, y = images()
    inputs = keras.Input((6, 6, 2), name="p")
    model = keras.Model({"p": inputs}, L.Dense(3)(L.Flatten()(inputs)))
    lab = adapter(model, {"p": x, key: y}, steps=1)
    assert lab.predict(0).accuracy is not None
    lab.restore()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"p": images()[0]}, "a dict with 'p' has no targets"),
        ((X, X, X, X), r"got a tuple of 4; override bncheck_forward and bncheck_train_step"),
        (X, "got a ndarray"),
        ((X[:0], INDICES[:0]), r"empty: its first array has shape \(0, 4\)"),
    ],
)
def test_batches_that_cannot_be_used(batch, message):
    with pytest.raises(InputError, match=message):
        KerasAdapter(head(3), [batch], Recipe(), None)


def test_the_users_arrays_are_not_changed():
    x, y = images()
    lab = KerasAdapter(functional(), [(x, y)], Recipe(), None)
    x[:] = 0.0
    assert host(lab._batches[0].inputs).any()


def test_devices():
    assert KerasAdapter(functional(), [images()], Recipe(), None).device == "cpu"
    for name in ("cpu", "CPU:0"):
        lab = adapter(functional(), steps=1, device=name)
        assert lab.device == "cpu"
        lab.restore()
    with pytest.raises(InputError, match=r"device: 'gpu:7' is not there; this machine has cpu"):
        KerasAdapter(functional(), [images()], Recipe(), "gpu:7")


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(InputError, match="openvino backend is not supported; set KERAS_BACKEND to"):
        KerasAdapter(object(), [], Recipe(), None)


def test_accepts_keras_models_only():
    assert KerasAdapter.accepts(Deaf())
    assert not KerasAdapter.accepts(L.Dense(3))


def test_dialect():
    dialect = KerasAdapter.dialect
    code = "keras.layers.BatchNormalization(momentum=0.9)"
    assert dialect.set_momentum("BatchNormalization", 0.1) == code
    assert dialect.set_momentum("OwnNorm", 0.25) == "OwnNorm(momentum=0.75)"
    assert dialect.momentum_of(0.01) == 0.99
    compile(dialect.recalibrate, "remedy", "exec")


# a training step of the model's own -------------------------------------------------------------


def with_own_step(key="loss"):
    """A model whose loss is three times what fit would minimise, by a step of its own."""

    class Own(keras.Model):
        steps = 0

        def __init__(self):
            super().__init__()
            self.bn, self.head = L.BatchNormalization(name="bn"), L.Dense(3)

        def call(self, x, training=None):
            return self.head(self.bn(x, training=training))

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 3.0 * super().compute_loss(x, y, y_pred, sample_weight, training)

        def train_step(self, *state_and_data):
            type(self).steps += 1
            result = super().train_step(*state_and_data)
            if BACKEND == "jax":
                logs, state = result
                return {key: logs["loss"]}, state
            return {key: result["loss"]}

    model = Own()
    model(X)
    return model


def test_own_train_step_of_the_model():
    model = with_own_step()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    before, optimizer = model.get_weights(), model.optimizer
    lab = adapter(model, (X, INDICES), steps=3)
    assert type(model).steps == 3
    assert lab.calls.training == (3,)
    assert lab.losses[0] > lab.losses[1] > lab.losses[2]
    # The logs are means over the steps since the last reset; each step shows its own.
    expected = 3 * expected_loss(SPARSE, INDICES, output(with_batch_statistics(lab)[0]),
                                 from_logits=True)  # fmt: skip
    lab.train_step(0)
    assert lab.losses[3] == pytest.approx(expected, rel=1e-4)
    lab.restore()
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert model.optimizer is optimizer
    assert not optimizer.built


def test_own_train_step_needs_what_fit_needs():
    with pytest.raises(InputError, match=r"Own has a train_step of its own.* call model\.compile"):
        adapter(with_own_step(), (X, INDICES), steps=1)
    model = with_own_step(key="score")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    with pytest.raises(InputError, match=r"train_step of Own must return .* a dict with 'score'"):
        adapter(model, (X, INDICES), steps=1)


def test_a_loss_given_goes_before_the_models_own_step():
    model = with_own_step()
    lab = adapter(model, (X, INDICES), steps=1, loss=lambda o, t: SPARSE(t, o, from_logits=True))
    assert type(model).steps == 0
    lab.restore()


def test_optimizers_of_the_users_own_step_are_put_back():
    model, optimizer = head(3), keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)

    def train_step(model, batch):
        optimizer.apply([v * 0 + 1.0 for v in model.trainable_variables])
        return 1.0

    if BACKEND == "torch":
        import torch

        train_step = torch.no_grad()(train_step)
    before = bits(optimizer.variables)
    lab = adapter(model, (X, INDICES), steps=2, train_step=train_step)
    assert bits(optimizer.variables) != before
    lab.restore()
    assert bits(optimizer.variables) == before


# sample weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_sample_weights(compiled):
    model, weights = head(3), np.linspace(0.0, 2.0, 12).astype("float32")
    if compiled:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    lab = adapter(model, (X, INDICES, weights), steps=1)
    lab.restore()
    each = host(SPARSE(INDICES, host(model(X)), from_logits=True))
    assert lab.losses[0] == pytest.approx(float((each * weights).mean()), rel=1e-4)
    assert lab.predict(0).loss == pytest.approx(lab.losses[0], rel=1e-4)
    assert len(output(lab.predict_half(0))) == 6


# compiled steps ---------------------------------------------------------------------------------

COMPILED = {"tensorflow": "graph", "jax": "jit"}
needs_compilation = pytest.mark.skipif(BACKEND not in COMPILED, reason="its steps are eager")


@needs_compilation
@pytest.mark.parametrize("build", [functional, Net, shared], ids=lambda f: f.__name__)
def test_compiled_steps_are_those_made_eagerly(build):
    found = []
    model = build()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    functions = model.train_function, model.optimizer
    for expected, execution in ((0, "eager"), (50, COMPILED[BACKEND])):
        lab = adapter(model, steps=4, expected=expected)
        assert lab.execution == execution
        found.append((lab.losses, lab.history, lab.calls, model.get_weights(), lab.idle))
        prediction, _, _ = with_batch_statistics(lab)
        assert np.isfinite(output(prediction)).all()
        lab.restore()
    eager, compiled = found
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-4)
    for a, b in zip(compiled[1], eager[1], strict=True):
        for x, y in zip(a.mean + a.var, b.mean + b.var, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-3)
    assert compiled[2] == eager[2]
    assert compiled[4] == eager[4] == []
    assert (model.train_function, model.optimizer) == functions


@needs_compilation
def test_dropout_goes_on_in_compiled_steps():
    lab = adapter(functional(rate=0.5), steps=3, expected=50)
    assert lab.execution == COMPILED[BACKEND]
    assert lab.stochastic
    lab.restore()
    plain = adapter(functional(), steps=3, expected=50)
    assert not plain.stochastic
    plain.restore()


@needs_compilation
def test_few_steps_are_not_compiled_where_eager_ones_are_quick():
    lab = adapter(functional(), steps=1, expected=5)
    assert lab.execution == ("jit" if BACKEND == "jax" else "eager")
    lab.restore()


@needs_compilation
@pytest.mark.parametrize("why", ["python", "numpy", "attribute", "loss"])
def test_what_a_trace_would_miss_is_run_eagerly(why):
    class Own(keras.Layer):
        count = 0

        def call(self, x):
            if why == "attribute":
                self.count += 1
            draws = {"python": random.random, "numpy": np.random.rand}
            return x * draws[why]() if why in draws else x

    loss = {}
    if why == "loss":
        loss["loss"] = lambda o, t: keras.ops.mean(o) * float(keras.ops.max(o) > -1e9)
    model = keras.Sequential([L.Flatten(), Own(), L.Dense(3)])
    lab = adapter(model, steps=2, expected=50, **loss)
    assert lab.execution == "eager"
    assert lab.stochastic == (why in ("python", "numpy"))
    lab.restore()
