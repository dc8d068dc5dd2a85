"""A framework of thirty lines, so that the plugin is tested without PyTorch or TensorFlow.

`ToyModel` is one batch normalisation and a linear softmax; `ToyAdapter` is a whole adapter.
"""

from __future__ import annotations

import copy
import random

import numpy as np

from pytest_bncheck.adapters.base import Adapter, Mode, Pass, Sampling
from pytest_bncheck.adapters.invented import Invented, does_not_fit
from pytest_bncheck.types import (
    Calls,
    Dialect,
    InputError,
    Layer,
    Prediction,
    Statistics,
)


class ToyModel:
    """Normalises its inputs, then a linear layer; called with inputs it returns logits."""

    eps = 1e-5

    def __init__(self, update_rate=0.1, features=4, classes=3):
        self.update_rate = update_rate
        self.training = True
        self.weight = 0.1 * np.random.standard_normal((features, classes))
        self.bias = np.zeros(classes)
        self.mean = np.zeros(features)
        self.var = np.ones(features)
        self.updates = 0

    def __call__(self, inputs):
        return self.normalise(np.asarray(inputs, float)) @ self.weight + self.bias

    def normalise(self, inputs):
        mean, var = self.mean, self.var
        if self.training:
            mean, var = inputs.mean(0), inputs.var(0)
            self.mean = self.mean + self.update_rate * (mean - self.mean)
            self.var = self.var + self.update_rate * (var - self.var)
            self.updates += 1
        return (inputs - mean) / np.sqrt(var + self.eps)


def toy_batch(size=24, features=4, classes=3, seed=0):
    """Three clouds of points, far from mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % classes
    centres = 10.0 * np.eye(classes, features)
    return 50.0 + centres[labels] + rng.standard_normal((size, features)), labels


def cross_entropy(logits, labels):
    """The mean loss and its gradient."""
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    gradient = np.exp(logs)
    gradient[rows, labels] -= 1.0
    return float(-logs[rows, labels].mean()), gradient / len(labels)


class ToyAdapter(Adapter, Sampling):
    framework = "toy"
    backend = "numpy"
    dialect = Dialect(
        set_momentum=lambda name, rate: f"model.update_rate = {rate:g}",
        recalibrate="model.training = True; model(inputs)",
        momentum_of=lambda rate: rate,
        training_mode="model.training = True",
    )

    @classmethod
    def invent(cls, model, shapes):
        size, features = shapes[0].sizes if shapes else (24, 4)
        if features != len(model.mean):
            raise does_not_fit(shapes, ValueError(f"{features} features"))
        return Invented(toy_batch(size), shapes or (), ran=False)

    def __init__(self, model, batches, recipe, device):
        if device not in (None, "cpu", "auto"):
            raise InputError(f"device={device!r}: this framework has cpu only")
        self.device = "cpu"
        self.model = model
        self.batches = batches
        self.recipe = recipe
        self.batch_size = len(batches[0][0])

    def save(self):
        self._saved = copy.deepcopy(vars(self.model))
        self._random = random.getstate(), np.random.get_state(legacy=False)

    def restore(self, *, keep_weights=False):
        if keep_weights:
            self.model.training = self._saved["training"]
        else:
            vars(self.model).clear()
            vars(self.model).update(self._saved)
        random.setstate(self._random[0])
        np.random.set_state(self._random[1])

    def begin(self):
        self.model.training = True

    def step(self, index):
        inputs, labels = self.batches[index]
        if self.recipe.train_step is not None:
            loss = self.recipe.train_step(self.model, self.batches[index])
        else:
            frozen = copy.deepcopy(vars(self.model))
            features = self.model.normalise(np.asarray(inputs, float))
            vars(self.model).update(frozen)
            loss, gradient = self._loss(self._forward(index), labels)
            rate = 1.0 if self.recipe.optimizer is None else self.recipe.optimizer(self.model)
            self.model.weight = self.model.weight - rate * features.T @ gradient
            self.model.bias = self.model.bias - rate * gradient.sum(0)
        return loss

    def _forward(self, index):
        if self.recipe.forward is not None:
            return self.recipe.forward(self.model, self.batches[index])
        return self.model(self.batches[index][0])

    def _loss(self, outputs, labels):
        return (self.recipe.loss or cross_entropy)(outputs, labels)

    def layers(self):
        return [
            Layer(
                name="norm",
                type="ToyNorm",
                momentum=self.model.update_rate,
                update_rate=self.model.update_rate,
                eps=self.model.eps,
                resolution=2.0**-52,
                dtype="float64",
            )
        ]

    def read(self, *, exact=False):
        return Statistics((self.model.mean.copy(),), (self.model.var.copy(),))

    def write(self, statistics, *, exact=False):
        self.model.mean, self.model.var = statistics.mean[0].copy(), statistics.var[0].copy()

    def run(self, index, mode, *, observe=True):
        if mode is Mode.EVAL:
            self.model.training = False
            return Pass(self._prediction(index))
        inputs = np.asarray(self.batches[index][0], float)
        before = copy.deepcopy(vars(self.model))
        self.model.training = True
        try:
            prediction = self._prediction(index)
        finally:
            vars(self.model).update(before)
        found = Statistics((inputs.mean(0),), (inputs.var(0),))
        return Pass(prediction, found, Calls((1,), (0,), (len(inputs),)))

    def predict_half(self, index):
        inputs, labels = self.batches[index]
        if len(inputs) < 2:
            return None
        half = slice(len(inputs) // 2)
        return ToyAdapter(self.model, [(inputs[half], labels[half])], self.recipe, None).predict(0)

    def _prediction(self, index):
        outputs, labels = self._forward(index), self.batches[index][1]
        return Prediction(
            outputs={"output": outputs},
            structure=f"array {outputs.shape}",
            loss=self._loss(outputs, labels)[0],
            accuracy=float((outputs.argmax(1) == labels).mean()),
            constant_loss=self._loss(np.broadcast_to(outputs.mean(0), outputs.shape), labels)[0],
        )
