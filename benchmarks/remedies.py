"""The remedies of a failing check against doing the real thing.

    python benchmarks/remedies.py [--framework torch|keras] [--smoke]

Nets of three shapes, two optimizers, three momenta, five seeds. Of every check that fails:

* further updates: trained on with frozen weights, one update at a time, until the prediction
  passes; right if the predicted number is within 15 % or 3 of the observed one;
* momentum: retrained with the proposed one, which has to pass, and with the next worse on the
  grid, which has to be broken;
* later momentum: retrained for four times as many steps with the one proposed for that, which has
  to pass;
* recalibration: done for real, after which the same model has to pass.

Prints one row per shape, optimizer and momentum, and the rates over all runs; the exit code is 1
where a rate is below 95 %.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import itertools
import sys
from typing import Any

from pytest_bncheck import check
from pytest_bncheck.experiment.remedies import LATER, RATES
from pytest_bncheck.maths.predictions import gap

STEPS = 30
TOLERANCE = 0.25
LOWEST = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--framework", choices=("torch", "keras"), default="torch")
    parser.add_argument("--smoke", action="store_true", help="one net only: does it work?")
    options = parser.parse_args()
    nets = importlib.import_module(f"nets_{options.framework}")
    cases = itertools.product(nets.SHAPES, nets.OPTIMIZERS, nets.MOMENTA)
    seeds = range(1 if options.smoke else 5)
    total: collections.Counter[str] = collections.Counter()
    print(f"{options.framework}: right of tried, over {len(seeds)} seeds, {STEPS} steps")
    print(f"{'shape':<10} {'optimizer':<9} {'momentum':>8}  " + "  ".join(COLUMNS))
    for case in itertools.islice(cases, 1) if options.smoke else cases:
        row: collections.Counter[str] = collections.Counter()
        for seed in seeds:
            row.update(_run(nets, *case, seed))
        print(f"{case[0]:<10} {case[1]:<9} {case[2]:>8g}  " + _cells(row), flush=True)
        total += row
    print(f"{'all':<10} {'':<9} {'':>8}  " + _cells(total))
    return int(any(_rate(total, name) < LOWEST for name in COLUMNS))


COLUMNS = ("further updates", "momentum", "next worse fails", "later momentum", "recalibration")


def _run(nets: Any, shape: str, optimizer: str, momentum: float, seed: int) -> dict[str, int]:
    """For each column, whether it was tried and whether it was right."""
    batch = nets.data(seed)
    options = {"steps": STEPS, "optimizer": nets.OPTIMIZERS[optimizer], "seed": seed}
    model = nets.build(shape, momentum, seed)
    report = check(model, batch, restore=False, **options)
    found: dict[str, int] = {}
    if report.bn_verdict != "broken" or report.remedies is None:
        return found

    def note(column: str, right: bool) -> None:
        found[f"{column} tried"] = 1
        found[column] = int(right)

    def verdict(rate: float, times: int = 1) -> str | None:
        other = nets.build(shape, nets.momentum(rate), seed)
        return check(other, batch, **{**options, "steps": times * STEPS}).bn_verdict

    remedies = report.remedies
    if remedies.further_updates is not None:
        observed = _observed(nets, model, batch, remedies.further_updates, report.predictions.floor)
        right = abs(remedies.further_updates - observed) <= max(3, 0.15 * observed)
        note("further updates", right)
    if remedies.momentum is not None:
        rate = min(RATES, key=lambda rate: abs(nets.momentum(rate) - remedies.momentum))
        note("momentum", verdict(rate) != "broken")
        worse = RATES[RATES.index(rate) - 1]
        if nets.momentum(worse) != momentum:
            note("next worse fails", verdict(worse) == "broken")
    later = report.findings[0].evidence["sufficient_rates"].get(str(LATER * STEPS))
    if later is not None:
        note("later momentum", verdict(later, LATER) != "broken")
    if remedies.recalibrates:
        hand = nets.ByHand(model, batch)
        hand.recalibrate()
        note("recalibration", check(model, batch, **{**options, "steps": 0}).ok)
    return found


def _observed(nets: Any, model: Any, batch: Any, predicted: int, floor: float) -> int:
    """Updates with frozen weights until the prediction passes; looked for up to twice as many."""
    hand = nets.ByHand(model, batch)
    reference = {"output": hand.predict(training=True)}
    target = max(0.8 * TOLERANCE, 1.2 * floor)
    for updates in range(2 * predicted + 10):
        prediction = {"output": hand.predict(training=False)}
        if gap(prediction, reference) <= target:
            return updates
        hand.update()
    return 2 * predicted + 10


def _rate(row: collections.Counter[str], name: str) -> float:
    return row[name] / row[f"{name} tried"] if row[f"{name} tried"] else 1.0


def _cells(row: collections.Counter[str]) -> str:
    return "  ".join(f"{row[name]} of {row[f'{name} tried']}".rjust(len(name)) for name in COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
