"""Reported faults in Keras and what must stay silent, each on two networks and two seeds."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras_nets import (
    CLASSES,
    KIND,
    NORMS,
    SEED,
    WIDTH,
    batch_norm,
    data,
    differentiated,
    fast,
    line,
    net,
    silent,
    sole,
)
from pytest_bncheck import check

BACKEND = keras.backend.backend()
L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def run(model: Any, kind: str, seed: int, *, steps: int = 100, **options: Any) -> Any:
    options.setdefault("optimizer", fast())
    return check(model, data(kind, seed), steps=steps, seed=seed, **options)


# statistics that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "steps", "left"), [(0.99, 15, "86.0 %"), (0.999, 60, "94.2 %")]
)
@KIND
@SEED
def test_long_memory_and_few_steps(kind, seed, momentum, steps, left):
    report = run(net(kind, seed, batch_norm(momentum)), kind, seed, steps=steps)
    finding = sole(report, "BN101")
    assert finding.severity == "error"
    assert report.verdict == "fail"
    assert sorted(finding.layers) == NORMS[kind]
    assert f"{steps} updates at momentum {momentum}" in finding.cause
    assert left in finding.cause
    sufficient = report.remedies.momentum
    assert sufficient < momentum
    assert f"BatchNormalization(momentum={sufficient:g})" in finding.remedy


@KIND
@SEED
def test_one_layer_with_a_long_memory_is_named(kind, seed):
    worst = NORMS[kind][1]
    model = net(kind, seed)
    model(data(kind)[0])
    norm = model.get_layer(worst) if kind == "functional" else model.blocks[1].norm
    norm.momentum = 0.999
    finding = sole(run(model, kind, seed, optimizer=fast(2e-2)), "BN101")
    assert finding.layers == [worst]


@KIND
@SEED
def test_long_memory_and_many_planned_updates(kind, seed):
    model = net(kind, seed, batch_norm(0.99))
    silent(run(model, kind, seed, planned_updates=5000))


@KIND
def test_long_memory_and_too_few_planned_updates(kind):
    model = net(kind, 0, batch_norm(0.999))
    finding = sole(run(model, kind, 0, steps=40, planned_updates=60), "BN101")
    assert "Projected to 60 updates" in finding.cause


@KIND
def test_long_memory_trained_long_enough(kind):
    silent(run(net(kind, 0, batch_norm(0.99)), kind, 0, steps=460, optimizer=fast(3e-3)))


@KIND
@SEED
def test_momentum_one(kind, seed):
    finding = sole(run(net(kind, seed, batch_norm(1.0)), kind, seed), "BN103")
    assert finding.layers == NORMS[kind]
    assert "At momentum 1 a batch has no weight" in finding.cause


@KIND
@SEED
def test_momentum_of_the_other_convention(kind, seed):
    finding = sole(run(net(kind, seed, batch_norm(0.1)), kind, seed), "BN104")
    assert finding.layers == NORMS[kind]
    assert "Was 0.9 meant?" in finding.remedy


# the mode gets lost -------------------------------------------------------------------------------


def step(optimizer, **mode):
    """A training loop's step."""

    def train_step(model, batch):
        inputs, labels = batch
        loss, gradients = differentiated(lambda: LOSS(labels, model(inputs, **mode)), model)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return train_step


@KIND
@SEED
def test_own_loop_without_the_mode(kind, seed):
    model = net(kind, seed, extra=L.Dropout(0.3, name="drop"))
    report = run(model, kind, seed, train_step=step(fast()))
    finding = sole(report, "BN305")
    assert sorted(finding.layers) == sorted([*NORMS[kind], "drop"])
    assert "model(x, training=True)" in finding.remedy
    again = net(kind, seed, extra=L.Dropout(0.3, name="drop"))
    silent(run(again, kind, seed, train_step=step(fast(), training=True)))


class Deaf(L.Layer):
    """Normalises, and its call takes no mode."""

    def __init__(self, norm, name):
        super().__init__(name=name)
        self.norm = norm

    def call(self, x):
        return keras.ops.relu(self.norm(x))


@KIND
@SEED
def test_mode_lost_in_a_layer_comes_from_the_context(kind, seed):
    """On TensorFlow a layer that is not told takes the mode of the layer around it."""
    report = run(net(kind, seed, lambda name: Deaf(batch_norm()("bn"), name)), kind, seed)
    silent(report)
    assert [(layer.name, layer.updates) for layer in report.layers] == [
        (f"{name}/bn", 100) for name in NORMS[kind]
    ]


class DeafModel(keras.Model):
    """A model whose call takes no mode: fit cannot pass it on."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def call(self, x):
        return self.body(x)


@KIND
@SEED
def test_model_whose_call_takes_no_mode(kind, seed):
    model = DeafModel(net(kind, seed))
    model.body.name = "body"
    finding = sole(run(model, kind, seed), "BN305")
    assert finding.layers == [f"body/{name}" for name in NORMS[kind]]


class Always(L.Layer):
    """Hard-wires training mode."""

    def __init__(self, inner, name):
        super().__init__(name=name)
        self.inner = inner

    def call(self, x):
        return self.inner(x, training=True)


HARD_WIRED = line(__file__, "return self.inner(x, training=True)")


@KIND
@SEED
def test_hard_wired_batch_statistics(kind, seed):
    model = net(kind, seed, lambda name: Always(batch_norm()("inner"), name))
    finding = sole(run(model, kind, seed), "BN303")
    assert finding.severity == "error"
    assert finding.layers == [f"{name}/inner" for name in NORMS[kind]]
    assert HARD_WIRED in finding.message
    assert f"in {NORMS[kind][0]}/inner" in finding.message
    assert "keras.layers.BatchNormalization" in finding.cause


@KIND
def test_hard_wired_batch_statistics_by_design(kind):
    model = net(kind, 0, lambda name: Always(batch_norm()("inner"), name))
    report = run(model, kind, 0, intended=["batch-statistics-in-eval"])
    silent(report)
    assert [s.code for s in report.suppressed] == ["BN303"]


@SEED
def test_mode_of_a_call_in_a_functional_model_is_overruled(seed):
    """Keras passes the mode of fit and predict to every layer of a functional model."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((20,))
    x = L.BatchNormalization(momentum=0.9, name="norm1")(L.Dense(WIDTH)(inputs), training=True)
    x = L.Dropout(0.3)(L.ReLU()(x), training=True)
    silent(run(keras.Model(inputs, L.Dense(CLASSES)(x)), "functional", seed))


# chance -------------------------------------------------------------------------------------------


@KIND
@SEED
def test_dropout_alone(kind, seed):
    model = net(kind, seed, lambda name: L.Identity(name=name), extra=L.Dropout(0.5))
    silent(run(model, kind, seed))


@KIND
@SEED
def test_dropout_after_the_last_normalisation(kind, seed):
    silent(run(net(kind, seed, extra=L.Dropout(0.5)), kind, seed))


class MonteCarlo(L.Layer):
    """Dropout as a function, whatever the mode."""

    def __init__(self, name="mc"):
        super().__init__(name=name)
        # On JAX Keras refuses to build a model that draws without.
        self.seeds = keras.random.SeedGenerator(0) if BACKEND == "jax" else None

    def call(self, x):
        return keras.random.dropout(x, 0.5, seed=self.seeds)


class Fresh(L.Layer):
    """A new dropout layer in each call."""

    def call(self, x):
        return L.Dropout(0.5)(x, training=True)


FRESH = line(__file__, "return L.Dropout(0.5)(x, training=True)")
MONTE_CARLO = line(__file__, "return keras.random.dropout(x, 0.5, seed=self.seeds)")


@pytest.mark.parametrize(
    ("make", "path", "call", "place"),
    [
        (lambda: Always(L.Dropout(0.5, name="inner"), "mc"), "mc/inner",
         "keras.layers.Dropout(0.5)(x, training=True)", HARD_WIRED),
        (lambda: Fresh(name="mc"), "mc", "keras.layers.Dropout(0.5)(x, training=True)", FRESH),
        (lambda: MonteCarlo(name="mc"), "mc", "keras.random.dropout(...)", MONTE_CARLO),
    ],
    ids=["layer", "fresh", "function"],
)  # fmt: skip
@KIND
@SEED
def test_monte_carlo_dropout(kind, seed, make, path, call, place):
    finding = sole(run(net(kind, seed, extra=make()), kind, seed, steps=30), "BN302")
    assert finding.severity == "error"
    assert f"{call} in {path}, {place}" in finding.message
    assert 'intended="stochastic-eval"' in finding.remedy


@KIND
def test_monte_carlo_dropout_by_design(kind):
    model = net(kind, 0, extra=MonteCarlo())
    declared = run(model, kind, 0, steps=30, intended=["stochastic-eval"])
    silent(declared)
    assert [s.code for s in declared.suppressed] == ["BN302"]


@SEED
def test_chance_in_a_lambda(seed):
    keras.utils.set_random_seed(seed)
    noisy = L.Lambda(lambda x: x + keras.random.normal((20,)), name="noisy")
    model = keras.Sequential([L.Input((20,)), noisy, L.Dense(CLASSES)])
    finding = sole(run(model, "functional", seed, steps=30), "BN302")
    assert "keras.random.normal(...) in noisy, test_faults.py:" in finding.message


# Keras needs TensorFlow for these on any backend.
AUGMENTATION = (
    (L.RandomFlip, partial(L.RandomTranslation, 0.1, 0.1)) if find_spec("tensorflow") else ()
)


@SEED
def test_augmentation_and_noise_layers(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            L.Input((8, 8, 3)),
            *(make() for make in AUGMENTATION),
            L.GaussianNoise(0.3),
            L.Conv2D(WIDTH, 3),
            L.ReLU(),
            L.GaussianDropout(0.1),
            L.SpatialDropout2D(0.1),
            L.Flatten(),
            L.Dense(CLASSES),
        ]
    )
    silent(run(model, "subclassed", seed))


@KIND
@SEED
def test_noise_before_normalisation_is_no_error(kind, seed):
    keras.utils.set_random_seed(seed)
    noisy = keras.Sequential([L.GaussianNoise(0.3), net(kind, seed)])
    report = run(noisy, kind, seed)
    assert report.ok, str(report)


class Vae(keras.Model):
    """Samples its latent variable in training, takes its mean in inference mode."""

    def __init__(self, samples_always=False):
        super().__init__()
        self.body = L.Dense(WIDTH, activation="relu")
        self.mean, self.scale = L.Dense(8, name="mean"), L.Dense(8, name="scale")
        self.decoder = keras.Sequential([L.Dense(WIDTH, activation="relu"), L.Dense(20)])
        self.seeds = keras.random.SeedGenerator(0)
        self.samples_always = samples_always

    def call(self, x, training=None):
        h = self.body(x)
        z, scale = self.mean(h), keras.ops.exp(self.scale(h) - 3.0)
        if training or self.samples_always:
            z = z + scale * keras.random.normal(z.shape, seed=self.seeds)
        return self.decoder(z)


@SEED
def test_vae(seed):
    keras.utils.set_random_seed(seed)
    inputs = data("functional", seed)[0]
    options = {"steps": 100, "seed": seed, "optimizer": fast()}
    silent(check(Vae(), (inputs, inputs), **options))
    finding = sole(check(Vae(samples_always=True), (inputs, inputs), **options), "BN302")
    place = line(__file__, "z = z + scale * keras.random.normal(z.shape, seed=self.seeds)")
    assert f"keras.random.normal(...), {place}" in finding.message


# the path and the state ---------------------------------------------------------------------------


class Flipped(L.Layer):
    """Turns the sign of its input in inference mode."""

    def call(self, x, training=None):
        return x if training else -x


@KIND
@SEED
def test_another_path_in_inference_mode(kind, seed):
    finding = sole(run(net(kind, seed, extra=Flipped()), kind, seed, steps=80), "BN201")
    assert finding.severity == "error"
    declared = net(kind, seed, extra=Flipped())
    report = run(declared, kind, seed, steps=80, intended=["mode-dependent-path"])
    silent(report)
    assert [s.code for s in report.suppressed] == ["BN201"]


class Centre(L.Layer):
    """Keeps an average that follows every batch, or those of training."""

    def __init__(self, minds_mode, name="centre"):
        super().__init__(name=name)
        self.minds_mode = minds_mode

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[1:], name="mean", trainable=False)
        self.mean.assign(keras.ops.zeros(shape[1:]))

    def call(self, x, training=None):
        if training or not self.minds_mode:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        return x


@KIND
@SEED
def test_state_that_inference_changes(kind, seed):
    finding = sole(run(net(kind, seed, extra=Centre(False)), kind, seed), "BN304")
    assert "centre.mean" in finding.message
    silent(run(net(kind, seed, extra=Centre(True)), kind, seed))


@KIND
@SEED
def test_frozen_variables_do_not_freeze_statistics(kind, seed):
    base = net(kind, seed)
    base.name = "base"
    inputs, labels = data(kind, seed)
    base(inputs)
    for variable in base.trainable_variables:
        variable.trainable = False
    model = keras.Sequential([L.Input(inputs.shape[1:]), base, L.Dense(CLASSES)])
    report = check(model, (inputs, labels), steps=100, optimizer=fast(5e-2), seed=seed)
    finding = sole(report, "BN107")
    assert finding.layers == [f"base/{name}" for name in NORMS[kind]]


# what must stay silent ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        lambda name: L.LayerNormalization(name=name),
        lambda name: L.GroupNormalization(4, name=name),
        lambda name: L.RMSNormalization(name=name),
        lambda name: L.UnitNormalization(name=name),
    ],
    ids=["layer", "group", "rms", "unit"],
)
@KIND
def test_normalisation_per_sample(kind, norm):
    report = run(net(kind, 0, norm), kind, 0)
    silent(report)
    # Where each pass is a program of its own, they may round otherwise.
    assert report.predictions.gap == pytest.approx(0.0, abs=1e-6 if BACKEND == "jax" else 0.0)
    assert report.layers == []


@KIND
@SEED
def test_frozen_layers(kind, seed):
    model = net(kind, seed, batch_norm(trainable=False))
    inputs, labels = data(kind, seed)
    silent(check(model, (inputs - inputs.mean(), labels), steps=100, optimizer=fast(), seed=seed))


class FineTuned(keras.Model):
    """A base in inference mode under a head of its own."""

    def __init__(self, base):
        super().__init__()
        self.base, self.top = base, L.Dense(CLASSES)

    def call(self, x, training=None):
        return self.top(self.base(x, training=False))


@pytest.mark.parametrize("way", ["functional, frozen", "subclassed, frozen", "subclassed"])
@KIND
@SEED
def test_base_called_in_inference_mode(kind, seed, way):
    base = net(kind, seed)
    base.trainable = "frozen" not in way
    inputs, labels = data(kind, seed)
    if way.startswith("functional"):
        given = keras.Input(inputs.shape[1:])
        model = keras.Model(given, L.Dense(CLASSES)(base(given, training=False)))
    else:
        model = FineTuned(base)
    optimizer = fast(5e-2) if "frozen" in way else fast()  # for a head alone, or for all
    silent(check(model, (inputs, labels), steps=100, optimizer=optimizer, seed=seed))


@KIND
@SEED
def test_normalisation_in_a_nested_model(kind, seed):
    inner = net(kind, seed)
    inner.name = "inner"
    model = keras.Sequential([L.Input(data(kind)[0].shape[1:]), inner, L.Dense(CLASSES)])
    report = run(model, kind, seed)
    silent(report)
    assert [layer.name for layer in report.layers] == [f"inner/{n}" for n in NORMS[kind]]


@SEED
def test_spectral_normalisation(seed):
    keras.utils.set_random_seed(seed)
    dense = keras.Sequential(
        [L.Input((20,)), L.SpectralNormalization(L.Dense(WIDTH)), L.ReLU(), L.Dense(CLASSES)]
    )
    silent(run(dense, "functional", seed))
    conv = keras.Sequential(
        [
            L.Input((8, 8, 3)),
            L.SpectralNormalization(L.Conv2D(WIDTH, 3)),
            L.BatchNormalization(momentum=0.9),
            L.ReLU(),
            L.GlobalAveragePooling2D(),
            L.SpectralNormalization(L.Dense(CLASSES)),
        ]
    )
    report = run(conv, "subclassed", seed)
    assert report.ok, str(report)


@SEED
def test_time_distributed_normalisation(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(32) % CLASSES
    x = (rng.normal(size=(CLASSES, 6, 5))[labels] + rng.normal(0, 0.3, (32, 6, 5)) + 3).astype("f4")
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            L.Input((6, 5)),
            L.TimeDistributed(L.BatchNormalization(momentum=0.9, name="bn"), name="steps"),
            L.LSTM(WIDTH),
            L.Dense(CLASSES),
        ]
    )
    report = check(model, (x, labels), steps=100, optimizer=fast(), seed=seed)
    silent(report)
    assert [layer.name for layer in report.layers] == ["steps/bn"]


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
@SEED
def test_dropout_in_recurrent_layers(seed, cell):
    rng = np.random.default_rng(seed)
    labels = np.arange(32) % CLASSES
    x = (rng.normal(size=(CLASSES, 4, 5))[labels] + rng.normal(0, 0.3, (32, 4, 5))).astype("f4")
    keras.utils.set_random_seed(seed)
    recurrent = getattr(L, cell)(WIDTH, dropout=0.3, recurrent_dropout=0.3)
    model = keras.Sequential(
        [L.Input((4, 5)), recurrent, L.BatchNormalization(momentum=0.9), L.Dense(CLASSES)]
    )
    report = check(model, (x, labels), steps=100, optimizer=fast(), seed=seed)
    assert report.ok, str(report)


@KIND
@SEED
def test_noise_learnt_by_heart(kind, seed):
    inputs, labels = data(kind, seed)
    noise = np.random.default_rng(seed).normal(3.0, 2.0, inputs.shape).astype("float32")
    report = check(net(kind, seed), (noise, labels), steps=100, optimizer=fast(), seed=seed)
    assert report.ok, str(report)


@KIND
@SEED
def test_regression(kind, seed):
    inputs, labels = data(kind, seed)
    targets = np.eye(CLASSES)[labels] * 3.0 - 1.0
    silent(check(net(kind, seed), (inputs, targets), steps=120, optimizer=fast(), seed=seed))
