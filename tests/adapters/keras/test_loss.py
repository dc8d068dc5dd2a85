"""Which loss a Keras model is trained on, and its accuracy."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import (
    INDICES,
    SPARSE,
    L,
    X,
    adapter,
    bits,
    expected_loss,
    head,
    host,
    images,
    output,
)
from keras_nets import differentiated
from passes import on_training_path
from pytest_bncheck.adapters.keras.loss import match
from pytest_bncheck.types import InputError

pytestmark = pytest.mark.usefixtures("clean")


ONE_HOT = np.eye(3, dtype="float32")[INDICES]
ZERO_ONE = np.arange(12) % 2
DENSE = keras.losses.categorical_crossentropy
BINARY = keras.losses.binary_crossentropy


class Scaled(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return 2.0 * keras.ops.mean(keras.ops.square(y_true - y_pred), -1)


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        (keras.losses.CategoricalCrossentropy(from_logits=True), None),
        (DENSE, "softmax"),
        (Scaled(), None),
    ],
    ids=["object", "function", "class of the user"],
)
def test_losses_of_keras_take_the_targets_first(loss, activation):
    """As in `compile`; all other functions get the outputs first."""
    model = head(3, activation)
    expected = host(keras.ops.mean(loss(ONE_HOT, model(X))))
    lab = adapter(model, (X, ONE_HOT), steps=1, loss=loss)
    assert lab.losses[0] == pytest.approx(float(expected), rel=1e-4)


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
    with pytest.raises(InputError, match=rf"targets hold the label {label}, .* from 0 to 2 are"):
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
    with pytest.raises(InputError, match="label 2, but the model has 1 output: labels from 0 to 1"):
        match((12, 1), np.arange(12) % 3)


def test_own_loss_is_averaged_and_its_accuracy_kept():
    model = head(3)
    lab = adapter(model, (X, INDICES), loss=lambda o, t: SPARSE(t, o, from_logits=True), steps=1)
    lab.restore()
    assert lab.losses[0] == pytest.approx(
        expected_loss(SPARSE, INDICES, model(X), from_logits=True), rel=1e-4
    )
    assert lab.predict(0).accuracy is not None
    with pytest.raises(InputError, match=r"loss: expected one number .* got None"):
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
    assert prediction.constant_loss is not None
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


class Deciding(keras.Model):
    """Returns scores in training, and the class itself in inference mode."""

    def __init__(self):
        super().__init__()
        self.scores = head(3)

    def call(self, x, training=None):
        scores = self.scores(x)
        return scores if training else keras.ops.argmax(scores, axis=-1)


def test_an_inferred_loss_is_not_asked_about_decisions():
    model = Deciding()
    model(X)
    lab = adapter(model, (X, INDICES), steps=1)
    found = lab.predict(0)
    assert (found.loss, found.constant_loss) == (None, None)
    assert on_training_path(lab).loss == pytest.approx(lab.losses[0], rel=0.1)
    lab.restore()


def pulled_together(outputs, targets):
    return keras.ops.mean(keras.ops.square(outputs - keras.ops.mean(outputs, axis=0)))


def entropy(outputs, targets):
    return keras.ops.mean(SPARSE(targets, outputs, from_logits=True))


@pytest.mark.parametrize(("loss", "of_classes"), [(pulled_together, False), (entropy, True)])
@pytest.mark.parametrize("own_step", [False, True])
def test_accuracy_is_that_of_a_classifier(loss, of_classes, own_step):
    """Integers ride along with many a batch that is not classified."""

    def step(model, batch):
        value, gradients = differentiated(lambda: loss(model(batch[0]), batch[1]), model)
        optimizer.apply(gradients, model.trainable_variables)
        return value

    model, optimizer = head(3), keras.optimizers.SGD(1e-3)
    lab = adapter(model, (X, INDICES), **({"train_step": step} if own_step else {"loss": loss}))
    lab.rehearse(0)
    lab.train_step(0)
    assert (lab.predict(0).accuracy is not None) is of_classes
    lab.restore()


def test_compute_loss_gets_the_inputs():
    teacher = head(3)

    class Distilled(Deciding):
        def call(self, x):
            return self.scores(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **more):
            return keras.ops.mean((teacher(x) - y_pred) ** 2)

    model = Distilled()
    model(X)
    model.compile("sgd")
    lab = adapter(model, (X, INDICES), steps=1)
    found = lab.predict(0)
    apart = output(found) - host(teacher(X))
    assert found.loss == pytest.approx((apart**2).mean(), rel=1e-4)
    assert found.accuracy is None
    lab.restore()
