"""The same model, weights and data on every backend of Keras: the same figures and verdicts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_nets import SEED, Deaf
from pytest_bncheck import check

BACKEND = keras.backend.backend()
L = keras.layers
FIGURES = Path(__file__).with_name("figures.json")
REWRITE = "BNCHECK_REWRITE"
FIXTURES = Path(__file__).parents[3] / "fixtures"


def convolutional(momentum):
    x = inputs = keras.Input((8, 8, 3))
    for width in (8, 16):
        x = L.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization(momentum=momentum)(x))
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def two_towers(momentum):
    """Two inputs through shared layers, two outputs."""
    dense, norm = L.Dense(12), L.BatchNormalization(momentum=momentum)
    inputs = [keras.Input((8, 8, 3), name=name) for name in ("left", "right")]
    towers = [L.ReLU()(norm(dense(L.Flatten()(x)))) for x in inputs]
    joined = L.Concatenate()(towers)
    return keras.Model(inputs, [L.Dense(4, name="kind")(joined), L.Dense(1, name="size")(joined)])


def built(build, momentum):
    """A model whose kernels come from numpy, so that every backend starts from the same."""
    model, rng = build(momentum), np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            fan_in = math.prod(layer.kernel.shape[:-1])
            layer.kernel.assign(rng.normal(0.0, fan_in**-0.5, layer.kernel.shape))
    return model


def data():
    rng = np.random.default_rng(1)
    labels = np.arange(24) % 4
    images = rng.normal(0.0, 0.5, (24, 8, 8, 3)) + rng.normal(0.0, 1.0, (4, 8, 8, 3))[labels] + 1.0
    return images.astype("float32"), labels


def checked(name, momentum, steps):
    images, labels = data()
    if name == "convolutional":
        model, batch = built(convolutional, momentum), (images, labels)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    else:
        model = built(two_towers, momentum)
        kind = keras.losses.SparseCategoricalCrossentropy(True)
        model.compile("sgd", [kind, "mse"], loss_weights=[1.0, 0.1])
        sizes = labels[:, None].astype("float32")
        batch = ([images, images[::-1].copy()], [labels, sizes])
    optimizer = keras.optimizers.SGD(0.1)
    return check(model, batch, steps=steps, optimizer=optimizer)


def figures_of(report):
    shown = report.predictions
    return {
        "verdict": report.verdict,
        "codes": [finding.code for finding in report.findings],
        "train": shown.train.loss,
        "eval": shown.eval.loss,
        "retained": shown.retained,
        "gap": shown.gap,
        "distortion": shown.distortion,
        "losses": list(report.training.loss)[::4],
    }


CASES = {
    f"{name} {momentum:g} {steps}": (name, momentum, steps)
    for name in ("convolutional", "two towers")
    for momentum, steps in ((0.99, 8), (0.8, 40))
}


@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_every_backend(case):
    found = figures_of(checked(*CASES[case]))
    stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if os.environ.get(REWRITE):
        FIGURES.write_text(json.dumps({**stored, case: found}, indent=1) + "\n")
        return
    expected = stored[case]
    assert (found["verdict"], found["codes"]) == (expected["verdict"], expected["codes"])
    for key in ("train", "eval", "retained", "gap", "distortion", "losses"):
        assert found[key] == pytest.approx(expected[key], rel=2e-3, abs=1e-4), key


THREE_IMAGES = """
import json
import keras
from images import three_images
from model import build_resnet
from pytest_bncheck import check

keras.utils.set_random_seed(0)
optimizer = keras.optimizers.Adam(1e-4)
report = check(build_resnet(), three_images(), steps=5, optimizer=optimizer)
print(json.dumps(report.to_dict()))
"""


@pytest.mark.skipif(BACKEND == "tensorflow", reason="tests/test_fixtures.py runs the whole repo")
def test_three_images_are_caught():
    """The story of the model repo, whose ResNet-50 is initialised anew on each backend.

    At a tenth of Adam's default rate, where how a processor rounds does not decide what is learned.
    """
    command = [sys.executable, "-W", "error"]
    # Keras' own, on torch with numpy 2.4.
    command += ["-W", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"]
    # Optimisation costs small nets more than it gains, and a ResNet less.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    done = subprocess.run(
        [*command, "-c", THREE_IMAGES], cwd=FIXTURES / "three_images_keras", env=environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    shown = found["predictions"]
    assert (found["backend"], found["steps"]) == (BACKEND, 5)
    assert [finding["code"] for finding in found["findings"]] == ["BN101"]
    assert (shown["train"]["accuracy"], shown["recalibrated"]["accuracy"]) == (1, 1)
    assert shown["eval"]["accuracy"] == pytest.approx(1 / 3)
    assert found["findings"][0]["evidence"]["initial_weight"] == pytest.approx(0.99**5)


def deaf():
    return Deaf(L.BatchNormalization(momentum=0.9, name="norm"), name="deaf")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [L.Dense(8), deaf(), L.Dense(4)]

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x)
        return x


def functional():
    inputs = keras.Input((20,))
    return keras.Model(inputs, L.Dense(4)(deaf()(L.Dense(8)(inputs))))


@pytest.mark.parametrize("build", [functional, Subclassed])
@SEED
def test_a_mode_lost_in_a_layer_is_what_fit_makes_of_it(build, seed):
    """The context passes it on in some versions and on some backends; where not, nothing trains."""
    rng = np.random.default_rng(seed)
    labels = np.arange(32) % 4
    samples = rng.normal(0.0, 1.0, (32, 20)) + rng.normal(0.0, 3.0, (4, 20))[labels] + 5.0
    batch = samples.astype("float32"), labels

    def compiled():
        keras.utils.set_random_seed(seed)
        model = build()
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        model.compile(keras.optimizers.Adam(1e-2), loss)
        return model

    fitted = compiled()
    fitted.fit(*batch, batch_size=32, epochs=1, verbose=0)
    (norm,) = (k for k in fitted._flatten_layers() if isinstance(k, L.BatchNormalization))
    moved = bool(np.abs(keras.ops.convert_to_numpy(norm.moving_mean)).max())

    report = check(compiled(), batch, steps=60, seed=seed)
    errors = [finding.code for finding in report.findings if finding.severity == "error"]
    assert report.layers[0].updates == (60 if moved else 0)
    assert errors == ([] if moved else ["BN305"]), str(report)


def tagger(recurrent):
    """A class for each token of a sentence, whose padding is masked."""
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(9, 8, mask_zero=True)(inputs)
    x = L.LSTM(8, return_sequences=True)(x) if recurrent else L.Dense(8, activation="relu")(x)
    x = L.BatchNormalization(momentum=0.9)(x)
    return keras.Model(inputs, L.TimeDistributed(L.Dense(4))(x))


@pytest.mark.parametrize("recurrent", [False, True])
def test_padding_does_not_count(recurrent):
    """Losses and accuracies are those that Keras itself finds in the model as it was trained."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    tokens, classes = rng.integers(1, 9, (16, 6)), rng.integers(0, 4, (16, 6))
    tokens[:, 3:] = 0
    model = tagger(recurrent)
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    # Eagerly: in a graph, Keras 3.7 does not pass a mask through TimeDistributed.
    model.compile(keras.optimizers.Adam(0.03), loss, run_eagerly=BACKEND == "tensorflow")
    report = check(model, (tokens.astype("int32"), classes), steps=20, restore=False)
    shown = report.predictions
    assert report.layers[0].values_per_channel == 16 * 3
    assert shown.eval.loss == pytest.approx(model.evaluate(tokens, classes, verbose=0), rel=1e-4)
    # Training mode comes last, since it moves the running statistics.
    for mode, found in ((False, shown.eval), (True, shown.train)):
        outputs = model(tokens, training=mode)
        expected = keras.ops.convert_to_numpy(keras.ops.stop_gradient(loss(classes, outputs)))
        assert found.loss == pytest.approx(expected, rel=1e-4)
        right = keras.ops.convert_to_numpy(keras.ops.stop_gradient(outputs)).argmax(-1) == classes
        assert found.accuracy == pytest.approx(right[:, :3].mean())
