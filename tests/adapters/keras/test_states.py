"""State that training moves, whatever it is called: found, and trained from given values."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import BACKEND, L, adapter, bits, host
from keras_norms import Centred, Every4, InList, RangeNorm, wrapped
from keras_steps import Inside
from pytest_bncheck.types import RunningState

pytestmark = pytest.mark.usefixtures("clean")

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, (16, 8)).astype("float32")
Y = np.arange(16) % 3


def net(*middle):
    layers = [keras.Input((8,)), L.Dense(12), *middle, L.ReLU(), L.Dropout(0.3), L.Dense(3)]
    model = keras.Sequential(layers)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def names(states):
    return [state.name.rpartition(".")[2] for state in states]


def found(states):
    """As the experiment finds it."""
    return RunningState(
        name=states[0].owner,
        type=states[0].type,
        states=tuple(state.name for state in states),
        sizes=tuple(state.stop.size for state in states),
        update_rate=0.01,
        updates=states[0].calls,
        calls=1,
        settled=np.concatenate([state.stop for state in states]),
        clean=np.concatenate([state.stop for state in states]),
    )


NORMS = {
    "tracked": (lambda: RangeNorm(0.99, name="own"), ["centre", "extent"]),
    "untracked": (lambda: InList(0.99, name="own"), ["values[0]", "values[1]"]),
    "of PyTorch": (lambda: wrapped("own", 0.99), ["running_mean", "running_var"]),
}
NORMS_HERE = [n for n in NORMS if n != "of PyTorch" or BACKEND == "torch"]


@pytest.mark.parametrize("name", NORMS_HERE)
def test_the_rate_and_the_settled_values_follow_from_three_starts(name):
    make, expected = NORMS[name]
    model = net(make())
    lab = adapter(model, (X, Y), steps=5, expected=5)
    states = lab.states()
    assert names(states) == expected
    assert {state.owner for state in states} == {model.layers[1].name}
    assert [(s.moves, s.calls, len(s.log)) for s in states] == [(5, 5, 5)] * 2
    assert (states[0].start == 0.0).all()
    assert (states[1].start == 1.0).all()
    np.testing.assert_array_equal(states[0].log[-1], states[0].stop)

    here = {state.name: state.stop for state in states}
    ends = lab.train_from(0)
    zero = lab.train_from(0, {name: 0.0 * values for name, values in here.items()})
    far = lab.train_from(0, {name: values + 1.0 for name, values in here.items()})
    assert ends.calls == dict.fromkeys(here, 1)
    mean = host(model.layers[0](X)).mean(0)
    for state in states:
        kept = far.states[state.name] - ends.states[state.name]
        assert kept == pytest.approx(0.99, abs=1e-5)
        settled = zero.states[state.name] / 0.01
        assert ends.states[state.name] == pytest.approx(
            0.99 * state.stop + 0.01 * settled, abs=1e-5
        )
    assert zero.states[states[0].name] / 0.01 == pytest.approx(mean, abs=1e-3)
    lab.restore()


@pytest.mark.parametrize("name", NORMS_HERE)
def test_training_from_other_values_leaves_nothing(name):
    model = net(NORMS[name][0]())
    lab = adapter(model, (X, Y), steps=3, expected=3)
    before, states = bits(model.variables), lab.states()
    zeros = {state.name: 0.0 * state.stop for state in states}
    first = lab.train_from(0, zeros, passes=2)
    lab.train_from(0, zeros, draw=1)
    assert bits(model.variables) == before
    assert [s.stop.tolist() for s in lab.states()] == [s.stop.tolist() for s in states]
    again = lab.train_from(0, zeros, passes=2)
    for state in states:
        np.testing.assert_array_equal(first.states[state.name], again.states[state.name])
    np.testing.assert_array_equal(*(m.prediction.outputs["output"] for m in (first, again)))
    assert lab.train_from(0, draw=1).prediction is None
    lab.restore()


def test_layers_that_do_as_they_say_are_known_and_others_are_state():
    model = net(Centred(name="known"), Every4(name="strange"))
    lab = adapter(model, (X, Y), steps=8, expected=8)
    assert [layer.name for layer in lab.layers()] == ["known"]
    states = {state.name: state for state in lab.states()}
    assert names(states.values()) == ["moving_mean", "moving_variance", "count"]
    assert states["strange.moving_mean"].moves == 2
    assert states["strange.moving_mean"].calls == 8
    lab.restore()


def test_what_was_found_counts_as_a_layer():
    lab = adapter(net(L.BatchNormalization(name="bn"), RangeNorm(name="own")), (X, Y), steps=4)
    states = lab.states()
    lab.adopt([found(states)])
    assert [layer.name for layer in lab.layers()] == ["bn", "own"]
    assert lab.layers()[1].states == ("centre", "extent")
    assert lab.calls.training == (4, 4)
    assert len(lab.history) == 5
    now = lab.read()
    np.testing.assert_array_equal(now.mean[1], np.concatenate([s.stop for s in states]))
    assert now.var[1].size == 0
    other = type(now)((now.mean[0], now.mean[1] + 1.0), now.var)
    lab.write(other)
    np.testing.assert_allclose(lab.read().mean[1], now.mean[1] + 1.0, rtol=1e-6)
    lab.write(now)
    lab.adopt([])
    assert [layer.name for layer in lab.layers()] == ["bn"]
    lab.restore()


def test_the_state_of_a_recurrent_layer_is_found_and_goes_back():
    if BACKEND == "torch":
        pytest.skip("Keras itself raises there")
    model = keras.Sequential(
        [keras.Input(batch_shape=(4, 3, 2)), L.LSTM(5, stateful=True, name="lstm"), L.Dense(1)]
    )
    model.compile("adam", "mse")
    x = RNG.normal(size=(4, 3, 2)).astype("float32")
    lab = adapter(model, (x, x.sum((1, 2))[:, None]), steps=2, expected=2)
    if BACKEND == "tensorflow":
        assert names(lab.states()) == ["states[0]", "states[1]"]
    before = [host(state.value).tolist() for state in model.layers[0].states]
    lab.predict(0)
    lab.train_from(0)
    assert [host(state.value).tolist() for state in model.layers[0].states] == before
    lab.restore()
    assert not any(host(state.value).any() for state in model.layers[0].states)


class Copied(Inside):
    """Trains one net, and predicts with another."""

    def __init__(self, inner):
        super().__init__(inner)
        self.copied = keras.models.clone_model(inner)
        self.copied.trainable = False

    def call(self, x, training=None):
        return self.copied(x, training=training)


@pytest.mark.parametrize("kind", [Inside, Copied])
def test_the_rehearsal_of_a_step_names_what_only_the_step_trains(kind):
    inner = keras.Sequential(
        [keras.Input((8,)), L.Dense(6, name="one"), L.BatchNormalization(name="bn"), L.Dense(3)],
        name="inner",
    )
    model = kind(inner)
    model(X)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if kind is Copied and BACKEND == "jax":
        pytest.skip("the step of these tests takes all trainable variables to the inner net")
    lab = adapter(model, (X, Y), steps=1, expected=2)
    before = bits(model.variables)
    lab.rehearse(0)
    assert bits(model.variables) == before
    assert lab.rehearsal is None
    lab.train_step(0)
    found = lab.rehearsal
    assert found.comparable
    assert found.changed == ()
    if kind is Inside:
        assert (found.absent, found.untrained) == ((), ())
    else:
        assert found.absent[:2] == ("inner/one", "inner/bn")
        assert len(found.untrained) == 3
    lab.restore()


def test_the_step_of_fit_is_not_rehearsed():
    lab = adapter(net(L.BatchNormalization()), (X, Y), steps=1)
    lab.rehearse(0)
    lab.train_step(0)
    assert lab.rehearsal is None
    lab.restore()
