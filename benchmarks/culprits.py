"""Whether the shares of layers in a gap name the right ones.

    python benchmarks/culprits.py [--smoke]

1. One culprit is planted in a residual net of 21 normalisation layers whose statistics are
   converged otherwise: a layer at momentum 0.001 that starts far off, in the stem, early, in the
   middle, late, as the first or the second of its branch. Beside it a decoy: the same fault in a
   layer with gamma = 0, which nobody notices. Counted: how often the culprit has the largest share,
   and the largest distortion, over the plants that fail their check.
2. In small nets all of whose layers are under-converged: how many of the three layers with the
   largest shares are among the three with the largest exact Shapley values, for the value
   v(S) = <y(S) - y_train, u>/|u|^2 of putting the statistics of S off, u the whole difference.

The exit code is 1 where the culprit is first in less than 95 % of the plants.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import nets_torch as nets
import numpy as np
import torch
from torch import nn

from pytest_bncheck import check
from pytest_bncheck.adapters.base import Mode
from pytest_bncheck.adapters.torch.adapter import TorchAdapter
from pytest_bncheck.types import Recipe, Statistics

LOWEST = 0.95
PLACES = (0, 1, 2, 9, 10, 19, 20)
DECOY = 14


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one net of each kind: does it work?")
    options = parser.parse_args()
    share = _plants(range(1 if options.smoke else 6), PLACES[:1] if options.smoke else PLACES)
    _all_at_once(range(1 if options.smoke else 10), ["plain"] if options.smoke else [*nets.SHAPES])
    return int(share < LOWEST)


def _plants(seeds: range, places: Any) -> float:
    counts = {"shares": 0, "distortion": 0}
    tried = silent = 0
    for seed in seeds:
        for place in places:
            model, culprit = _planted(seed, place)
            report = check(model, nets.data(seed), steps=60, seed=seed)
            if report.bn_verdict != "broken":
                silent += 1
                continue
            tried += 1
            shares = {layer.name: layer.attribution for layer in report.layers}
            bends = {layer.name: layer.distortion for layer in report.layers}
            counts["shares"] += max(shares, key=shares.__getitem__) == culprit
            counts["distortion"] += max(bends, key=bends.__getitem__) == culprit
    print(f"planted culprit with a decoy, 21 layers: first of {tried} that fail (and {silent} not)")
    for name, count in counts.items():
        print(f"  by {name:<10} {count} of {tried}")
    return counts["shares"] / tried if tried else 0.0


def _planted(seed: int, place: int) -> tuple[nn.Module, str]:
    torch.manual_seed(seed)
    model = nets.Residual(0.3, blocks=10)
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for index in (place, DECOY):
        norm = norms[index][1]
        norm.momentum = 0.001
        norm.running_mean.fill_(1.0)
        norm.running_var.fill_(9.0)
    norms[DECOY][1].weight.requires_grad_(False).zero_()
    return model, norms[place][0]


def _all_at_once(seeds: range, shapes: list[str]) -> None:
    print("all layers under-converged: the top three by shares against exact Shapley values")
    for shape in shapes:
        common, first, correlations = [], [], []
        for seed in seeds:
            model, batch = nets.build(shape, 0.01, seed), nets.data(seed)
            report = check(model, batch, steps=30, restore=False, seed=seed)
            if report.bn_verdict != "broken":
                continue
            shares = np.array([layer.attribution for layer in report.layers])
            exact = _shapley(model, batch)
            top = [set(np.argsort(-values)[:3]) for values in (shares, exact)]
            common.append(len(top[0] & top[1]))
            first.append(int(np.argmax(shares)) in top[1])
            correlations.append(_spearman(shares, exact))
        print(
            f"  {shape:<10} {len(common)} nets: {np.mean(common):.2f} of 3 in common, the first "
            f"among them in {100 * np.mean(first):.0f} %, rank correlation "
            f"{np.median(correlations):.2f} (median)"
        )


def _shapley(model: nn.Module, batch: Any) -> np.ndarray:
    lab = TorchAdapter(model, [batch], Recipe(), None)
    lab.save()
    lab.begin()
    found = lab.run(0, Mode.BATCH_STATISTICS)
    train, right = found.prediction, found.statistics
    off = lab.read(exact=True)
    count = len(off)

    def predict(subset: int) -> np.ndarray:
        chosen = [off if subset >> k & 1 else right for k in range(count)]
        mixed = Statistics(
            tuple(each.mean[k] for k, each in enumerate(chosen)),
            tuple(each.var[k] for k, each in enumerate(chosen)),
        )
        lab.write(mixed, exact=True)
        return lab.predict(0).outputs["output"]

    base = train.outputs["output"]
    outputs = [predict(subset) for subset in range(2**count)]
    u = outputs[-1] - base
    value = [float(((y - base) * u).sum() / (u * u).sum()) for y in outputs]
    lab.write(off, exact=True)
    lab.restore()
    weights = [1.0 / (count * math.comb(count - 1, size)) for size in range(count)]
    return np.array(
        [
            sum(
                weights[subset.bit_count()] * (value[subset | 1 << k] - value[subset])
                for subset in range(2**count)
                if not subset >> k & 1
            )
            for k in range(count)
        ]
    )


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    sys.exit(main())
