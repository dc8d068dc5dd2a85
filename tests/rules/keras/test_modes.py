"""Random numbers in inference mode in Keras, each fault in its place."""

from __future__ import annotations

import pytest

keras = pytest.importorskip("keras")

from keras_nets import (
    CLASSES,
    HARD_WIRED,
    KIND,
    SEED,
    WIDTH,
    Always,
    data,
    fast,
    line,
    net,
    run,
    silent,
    sole,
)
from pytest_bncheck import check

BACKEND = keras.backend.backend()
L = keras.layers


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
    assert "keras.random.normal(...) in noisy, test_modes.py:" in finding.message


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
