"""Healthy architectures of Keras, with small inputs and random weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import applications as a

CLASSES = 4
ZOO: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "ResNet50": (a.ResNet50, 32, {}),
    "ResNet50V2": (a.ResNet50V2, 32, {}),
    "VGG16": (a.VGG16, 32, {}),
    "MobileNet": (a.MobileNet, 32, {"alpha": 0.25}),
    "MobileNetV2": (a.MobileNetV2, 32, {"alpha": 0.35}),
    "MobileNetV3Small": (a.MobileNetV3Small, 32, {"include_preprocessing": False}),
    "EfficientNetB0": (a.EfficientNetB0, 32, {}),
    "EfficientNetV2B0": (a.EfficientNetV2B0, 32, {"include_preprocessing": False}),
    "DenseNet121": (a.DenseNet121, 32, {}),
    "NASNetMobile": (a.NASNetMobile, 32, {}),
    "Xception": (a.Xception, 71, {}),
    "ConvNeXtTiny": (a.ConvNeXtTiny, 32, {"include_preprocessing": False}),
}
PLANNED = 20_000
"""Updates that a real training makes: at momentum 0.99 those of the check are too few."""


def build(name: str, size: int, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    make, side, options = ZOO[name]
    body = make(
        weights=None, include_top=False, input_shape=(side, side, 3), pooling="avg", **options
    )
    model = keras.Model(body.input, keras.layers.Dense(CLASSES)(body.output))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, run_eagerly=True)
    return model


def data(name: str, size: int, samples: int, seed: int) -> tuple[Any, Any]:
    """Noise around a picture for each of four classes."""
    rng, side = np.random.default_rng(seed), ZOO[name][1]
    labels = np.arange(samples) % CLASSES
    coarse = rng.normal(size=(CLASSES, 4, 4, 3))
    pictures = coarse.repeat(-(-side // 4), 1).repeat(-(-side // 4), 2)[:, :side, :side]
    images = pictures[labels] + 0.5 * rng.normal(size=(samples, side, side, 3))
    return images.astype("float32"), labels


loss = None
