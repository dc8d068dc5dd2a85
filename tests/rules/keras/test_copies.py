"""Copies without their moving statistics, in Keras."""

from __future__ import annotations

from typing import Any

import pytest

keras = pytest.importorskip("keras")

from keras_nets import KINDS, NORMS, SEED, data, fast, fit, net, silent, sole
from pytest_bncheck import check


@pytest.mark.parametrize("kind", KINDS)
@SEED
def test_copy_of_trainable_weights_alone(kind, seed):
    def compiled() -> Any:
        model = net(kind, seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(fast(), loss)
        model(batch[0][:1])
        return model

    batch = data(kind, seed)
    model, copy = compiled(), compiled()
    fit(model, kind, seed, 100)
    for own, other in zip(copy.trainable_variables, model.trainable_variables, strict=True):
        own.assign(other)
    finding = sole(check(copy, batch, steps=0), "BN401")
    assert finding.layers == NORMS[kind]
    assert "set_weights" in finding.remedy

    copy.set_weights(model.get_weights())
    silent(check(copy, batch, steps=0))
