"""`--bncheck-model` on models of all kinds: is the verdict right, and the time as announced?

    python benchmarks/targets.py [--only TEXT] [--smoke]

No batch is given but where a shape has to be said. Transformers, torchvision and the applications
of Keras are tried where they are installed, never with weights. Prints a row for each model; the
exit code is 1 where a verdict is wrong, or a training took longer than the run said after three
steps.
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
import time
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
    wrong = late = announced = 0
    for model in models:
        check, said, took = _run(model)
        wrong += _wrong(model, check)
        if said is not None:
            announced += 1
            late += took > said
            print(f"  {said:.0f} s of training announced after three steps, {took:.1f} s made")
    print(
        f"{len(models)} models, {wrong} wrong verdicts; {late} of {announced} announced too short"
    )
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


ANNOUNCED = re.compile(r"bncheck: \S+ makes .* steps, (?:at most|about) (.+) more")
UNITS = {"s": 1, "min": 60}


def _seconds(line: str) -> float | None:
    """What a line announces, if it does."""
    found = ANNOUNCED.match(line)
    words = found[1].split() if found else []
    pairs = zip(words[::2], words[1::2], strict=True)
    return sum(float(number) * UNITS[unit] for number, unit in pairs) if found else None


def _run(model: Model) -> tuple[dict[str, Any], float | None, float]:
    """The check of a model, how long its training was announced to last, and how long it did."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        flags = [f"--bncheck-model={model.spec}", f"--bncheck-json={path}", *model.options]
        flags += [f"--bncheck-input={model.input}"] if model.input else []
        said, since, output = None, 0.0, []
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *flags),
                *("--rootdir", folder, folder),
            ],
            cwd=HERE,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as run:
            for line in run.stdout or ():
                output.append(line)
                if (seconds := _seconds(line)) is not None:
                    said, since = seconds, time.monotonic()
            took = time.monotonic() - since
        if not path.exists():
            raise SystemExit("".join(output))
        (check,) = json.loads(path.read_text(encoding="utf-8"))["checks"]
    parts = check["seconds"]
    return check, said, took - (parts["measure"] or 0.0) - (parts["diagnose"] or 0.0)


if __name__ == "__main__":
    sys.exit(main())
