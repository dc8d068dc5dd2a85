"""Runs the benchmarks one after the other and writes what they print to `results.md`.

    python benchmarks/run.py [--smoke]

On a quiet machine: two tests at a time on few cores measure each other.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("startup.py",),
    ("report_files.py",),
    ("cost.py",),
    ("diagnosis.py",),
    ("diagnosis.py", "--framework", "keras"),
    ("keras_cost.py",),
    ("keras_story.py",),
    ("auto_steps.py",),
    ("scaling.py",),
    ("fuzz.py",),
    ("graphs.py",),
    ("graphs.py", "--framework", "keras"),
    ("checkpoints.py",),
    ("own_norms.py",),
    ("own_norms_keras.py",),
    ("zoo.py",),
    ("zoo.py", "--of", "keras"),
    ("zoo.py", "--of", "transformers"),
    ("targets.py",),
    ("peers.py",),
    ("memory.py",),
    ("memory.py", "--framework", "keras"),
    ("culprits.py",),
    ("three_images.py",),
    ("remedies.py",),
    ("remedies.py", "--framework", "keras"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="short forms: do they work?")
    options = parser.parse_args()
    page = [
        "# Results\n",
        f"{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}; written by `python benchmarks/run.py`.\n",
    ]
    failed = []
    for command in RUNS:
        print(f"\n$ python benchmarks/{' '.join(command)}", flush=True)
        if options.smoke and command[0] == "keras_story.py":
            continue  # it has no short form
        short = ["--smoke"] if options.smoke else []
        run = subprocess.run(
            [sys.executable, *command, *short],
            cwd=HERE,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        print(run.stdout, end="", flush=True)
        page.append(f"```\n$ python benchmarks/{' '.join(command)}\n{run.stdout}```\n")
        if run.returncode:
            failed.append(command[0])
    if not options.smoke:
        (HERE / "results.md").write_text("\n".join(page), encoding="utf-8")
    print(f"over their limit: {', '.join(failed)}" if failed else "all within their limits")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
