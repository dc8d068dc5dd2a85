"""What is said of Keras' models."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_bncheck.wording import listing, plural


def off(model: str, names: Sequence[str]) -> str:
    """BN305."""
    verb = "was" if len(names) == 1 else "were"
    return (
        f"{model} was trained in inference mode: {plural(len(names), 'layer')} ({listing(names)}) "
        f"{verb} off, since its call in the training step has no training=True."
    )


def on(model: str, names: Sequence[str], how: str) -> str:
    """BN307 and BN403."""
    verb = "was" if len(names) == 1 else "were"
    return (
        f"{model} was trained, and in {how}() {plural(len(names), 'layer')} ({listing(names)}) "
        f"{verb} in training mode."
    )


def of_statistics(code: str, model: str, layer: str, momentum: float | None, how: str) -> str:
    """BN103, BN104, BN105 and BN107."""
    name = f"layer {layer} of {model}"
    why = " at momentum 1" if momentum == 1 else ""
    return {
        "BN103": f"The running statistics of {name} did not move in {how}(){why}.",
        "BN104": f"Layer {layer} of {model} has momentum {momentum}, in Keras the weight of the "
        "past: its running statistics remember the last batches only.",
        "BN105": f"A running statistic of {name} is NaN, infinite or a negative variance after "
        f"{how}(), and its weights are finite.",
        "BN107": f"Layer {layer} of {model} and all before it are frozen, and its running "
        f"statistics moved in {how}().",
    }[code]


OFF = "model(inputs, training=False)  # and no training=True for a layer inside"

REMEDIES = {
    "BN103": "keras.layers.BatchNormalization(momentum=0.9)",
    "BN104": "keras.layers.BatchNormalization(momentum=0.9)",
    "BN105": "Look at what the layer gets: a batch of NaN, or infinite values, stays in the "
    "statistics for good.",
    "BN107": "Let it normalise as in inference where it is frozen, as BatchNormalization does: "
    "if training and self.trainable.",
    "BN305": "model(inputs, training=True)  # in the training step",
    "BN307": OFF,
    "BN403": OFF,
}
