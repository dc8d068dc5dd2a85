"""What the check says of the three-image ResNet-50, against doing it.

    python benchmarks/three_images.py [--backend torch] [--seeds 2] [--smoke]

For each seed, the check of the story (Keras, momentum 0.99, 5 epochs) names how many more updates
are needed and which momentum would have sufficed for 5 and for 20 epochs. Then the same model is

* trained on with frozen weights until its prediction is within the limit: right if that takes the
  number of updates that was named, within 15 %;
* retrained from the start for 5 epochs with the momentum that was named, which has to pass, or
  with every momentum where the check says that none would do, which all have to fail;
* retrained for 20 epochs with the momentum that was named for them, which has to pass.

The exit code is 1 where one of these is not so.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parents[1] / "fixtures" / "three_images_keras"
EPOCHS = (5, 20)
MARGIN = 0.8
"""Share of the allowed gap that the advice aims at."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="torch", choices=("tensorflow", "torch", "jax"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="a small net, one seed: does it work?")
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = options.backend
    sys.path.insert(0, str(FIXTURE))
    seeds = range(1 if options.smoke else options.seeds)
    right = [_story(seed, options.smoke) for seed in seeds]
    return int(not all(right) and not options.smoke)


def _story(seed: int, small: bool) -> bool:
    import keras
    from images import three_images

    from pytest_bncheck import check
    from pytest_bncheck.experiment.remedies import RATES

    images, labels = three_images()
    batch = (images[:, ::8, ::8], labels) if small else (images, labels)

    def retrained(steps: int, rate: float) -> bool:
        """Whether training again with this update rate passes."""
        model = _build(seed, small, momentum=1.0 - rate)
        report = check(model, batch, steps=steps, seed=seed)
        right = report.predictions.eval.accuracy
        print(f"  {steps} epochs at momentum {1 - rate:g}: evaluates to {right:.2f}", flush=True)
        return bool(report.bn_verdict != "broken")

    model = _build(seed, small)
    report = check(model, batch, steps=EPOCHS[0], seed=seed, restore=False)
    print(f"seed {seed}, {keras.backend.backend()}: {report.findings[0].code}")
    right = [scored.accuracy for scored in (report.predictions.train, report.predictions.eval)]
    print(f"  5 epochs at momentum 0.99: fits to {right[0]:.2f}, evaluates to {right[1]:.2f}")
    said, needed = report.findings[0].evidence["sufficient_rates"], report.remedies.further_updates
    observed = _updates(model, batch, needed, report.predictions.floor)
    print(f"  further updates: {needed} said, {observed} needed with frozen weights", flush=True)
    right = [needed is not None and abs(needed - observed) <= max(3, 0.15 * observed)]
    for steps in EPOCHS:
        rate = said[str(steps)]
        print(f"  for {steps} epochs: {'none' if rate is None else f'momentum {1 - rate:g}'} said")
        if rate is not None:
            right.append(retrained(steps, rate))
        else:
            others = [other for other in RATES if other >= 0.1][:: 4 if small else 2]
            passed = [other for other in others if retrained(steps, other)]
            right.append(not passed)
    return all(right)


def _build(seed: int, small: bool, momentum: float = 0.99) -> Any:
    import keras
    from model import build_resnet

    keras.utils.set_random_seed(seed)
    if not small:
        return build_resnet(momentum)
    layers = keras.layers
    blocks = [
        part
        for width in (8, 16)
        for part in (
            layers.Conv2D(width, 3),
            layers.BatchNormalization(momentum=momentum),
            layers.ReLU(),
        )
    ]
    top = [layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]
    model = keras.Sequential([layers.Rescaling(1 / 255), *blocks, *top])
    optimizer = keras.optimizers.Adam(0.02)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _updates(trained: Any, batch: Any, expected: int, floor: float | None) -> int:
    """Updates with frozen weights until the prediction is within the limit, to 1 %."""
    import keras

    from pytest_bncheck.maths.predictions import gap

    model = trained
    if keras.backend.backend() == "torch":  # else each update keeps the graph of all before it
        import torch

        model = torch.no_grad()(trained)

    def predict(training: bool) -> Any:
        outputs = model(batch[0], training=training)
        return {"output": keras.ops.convert_to_numpy(outputs).astype("float64")}

    weights = trained.get_weights()
    reference = predict(training=True)
    trained.set_weights(weights)
    target = max(MARGIN * 0.25, 1.2 * (floor or 0.0))
    look, updates = max(1, expected // 100), 0
    while updates < 2 * expected + 10:
        looks = updates >= 0.7 * expected and updates % look == 0
        if looks and gap(predict(training=False), reference) <= target:
            break
        model(batch[0], training=True)
        updates += 1
    return updates


if __name__ == "__main__":
    sys.exit(main())
