"""`--bncheck-model` on models of all kinds: is the verdict right, and the time as announced?

    python benchmarks/targets.py [--only TEXT] [--smoke]

No batch is given but where a shape has to be said. Transformers, torchvision and the applications
of Keras are tried where they are installed, never with weights. Prints a row for each model; the
exit code is 1 where a verdict is wrong, or a check took longer than the run said after three steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Model(NamedTuple):
    """A model, and what has to be found."""

    spec: str
    code: str = ""
    input: str = ""
    needs: str = "torch"
    options: tuple[str, ...] = ()


PICTURES = {"input": "8x64x64x3", "needs": "keras", "options": ("--bncheck-planned-updates=20000",)}
MODELS = (
    Model("target_nets:layernorm"),
    Model("target_nets:AlwaysDropped", "BN302"),
    Model("target_nets:InAList", "BN301"),
    Model("target_nets:without_statistics", "BN303"),
    Model("target_nets:Scaled", "BN201"),
    Model("target_nets:swapped_momentum", "BN104"),
    Model("target_nets:long_memory", "BN101"),
    Model("target_nets:mlp"),
    Model("target_nets:cnn"),
    Model("target_nets:regressor"),
    Model("target_nets:autoencoder"),
    Model("target_nets:Recurrent"),
    Model("target_nets:Text"),
    Model("target_nets:Residual"),
    Model("target_nets:bert", input="int64:8x16", needs="transformers"),
    Model("target_nets:gpt", input="int64:8x16", needs="transformers"),
    Model("target_nets:vit", input="8x3x32x32", needs="transformers"),
    Model("torchvision.models:resnet18", needs="torchvision"),
    Model("torchvision.models:shufflenet_v2_x0_5", needs="torchvision"),
    Model("torchvision.models:mobilenet_v2", needs="torchvision"),
    Model("keras.applications:MobileNet", **PICTURES),
    Model("keras.applications:MobileNetV3Small", **PICTURES),
    Model("keras.applications:EfficientNetB0", **PICTURES),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="models with this in their spec")
    parser.add_argument("--smoke", action="store_true", help="the first four: does it work?")
    options = parser.parse_args()
    wanted = [each for each in MODELS if options.only in each.spec]
    models = [each for each in wanted if importlib.util.find_spec(each.needs) is not None]
    models = models[:4] if options.smoke else models
    groups: dict[tuple[str, tuple[str, ...]], list[Model]] = {}
    for model in models:
        groups.setdefault((model.input, model.options), []).append(model)
    rows = [row for group in groups.values() for row in _run(group)]
    wrong = sum(_wrong(model, check) for model, check, _ in rows)
    late = sum(_late(check, seconds) for _, check, seconds in rows)
    said = sum(seconds is not None for *_, seconds in rows)
    print(f"{len(models)} models, {wrong} wrong verdicts; {late} of {said} later than announced")
    return int(wrong + late > 0)


def _wrong(model: Model, check: dict[str, Any]) -> bool:
    """Print a row; whether the verdict is wrong."""
    codes = [each["code"] for each in check["findings"]]
    wrong = check["verdict"] == "error" or codes != [model.code][: len(model.code)]
    why = f"  wrong: {check['error'] or model.code or 'healthy'}" if wrong else ""
    steps, seconds = check["steps"] or 0, check["seconds"]["total"] or 0
    print(
        f"{model.spec:<40} {check['verdict']:<5} {' '.join(codes):<6} {steps:>4} steps "
        f"{seconds:>6.1f} s{why}",
        flush=True,
    )
    return wrong


def _late(check: dict[str, Any], said: float | None) -> bool:
    """Print what was announced, if anything; whether the whole check took longer."""
    took = check["seconds"]["total"] or 0.0
    if said is not None:
        print(
            f"{check['nodeid']}: {said:.0f} s more announced after three steps, {took:.1f} s in all"
        )
    return said is not None and took > said


ANNOUNCED = re.compile(r"bncheck: (\S+) makes .* steps, (?:at most|about) (.+) more")
UNITS = {"s": 1, "min": 60}


def _announced(output: str) -> dict[str, float]:
    """Seconds, by test."""
    found = {}
    for test, text in ANNOUNCED.findall(output):
        numbers, units = text.split()[::2], text.split()[1::2]
        pairs = zip(numbers, units, strict=True)
        found[test] = sum(float(number) * UNITS[unit] for number, unit in pairs)
    return found


def _run(models: list[Model]) -> list[tuple[Model, dict[str, Any], float | None]]:
    """The checks of models whose options are the same, in one run of pytest, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        flags = [f"--bncheck-model={model.spec}" for model in models]
        flags += [f"--bncheck-input={models[0].input}"] if models[0].input else []
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *flags),
                *(*models[0].options, f"--bncheck-json={path}", "--rootdir", folder, folder),
            ],
            cwd=HERE,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
        )
        if not path.exists():
            raise SystemExit(run.stdout + run.stderr)
        checks = json.loads(path.read_text(encoding="utf-8"))["checks"]
    found = {check["nodeid"].removeprefix("bncheck::"): check for check in checks}
    said = _announced(run.stdout)
    return [(each, found[each.spec], said.get(f"bncheck::{each.spec}")) for each in models]


if __name__ == "__main__":
    sys.exit(main())
