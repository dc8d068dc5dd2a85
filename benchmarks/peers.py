"""Other tools and ours on the same models: which fault is detected, and who cries wolf?

    python benchmarks/peers.py [--only TOOL ...] [--folder FOLDER] [--smoke]

Makes an environment for each tool (`TOOLS`) with the versions of `constraints.txt`, runs
`peer_tools.py` in it over the cases of `peer_cases.py`, and judges what each tool said:

- *detected*: of a model with a fault, a check of the tool complains that is about this fault;
- *symptom only*: another check complains, so somebody would go looking;
- *silent*: no check complains;
- *no answer*: it stopped with an error that is not its verdict, or after 100 s of processor time;
- *false alarm*: of a healthy model, a check complains.

Writes `peers.json`, from which the page on other tools is made, and prints its tables. It installs
PyTorch for each tool and takes about half an hour; `--smoke` takes a few cases and our own
environment alone, and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULT = HERE / "peers.json"
OUTCOMES = ("detected", "symptom only", "silent", "no answer", "false alarm")


@dataclass(frozen=True)
class Tool:
    """A tool, and what it is used for.

    Attributes
    ----------
    title
        As tables call it.
    requirement
        What pip installs; empty for code that needs PyTorch alone.
    used
        What is called, in a few words.
    about
        For each of its checks the cases whose fault it is about: rules, own norms and names of the
        suite of theirs.
    alone
        Without what its metadata asks for, which is older than the PyTorch here.
    """

    title: str
    used: str
    requirement: str = ""
    about: dict[str, tuple[str, ...]] = field(default_factory=dict)
    alone: bool = False


GRADIENTS = ("unused layer", "graph is cut")
OWN = "own norms"

TOOLS = {
    "bncheck": Tool(
        "pytest-bncheck",
        "`check()`",
        str(ROOT),
        {
            "BN101": ("BN101", OWN),
            "BN202": ("BN202", "learning rate far too small"),
            "BN302": ("BN302", "dropout in eval mode"),
            "BN303": ("BN303", "batch taken for the sequence"),
            "BN401": ("BN401", "state that no checkpoint holds"),
        },
    ),
    "pytest-torch": Tool(
        "pytest-torch",
        "inference contract, checkpoint, training sanity",
        "pytest-torch==1.1.1",
        {
            "deterministic": ("BN302", "dropout in eval mode"),
            "batch_invariance": ("BN303", "batch taken for the sequence"),
            "no_state_mutation": ("BN304",),
            "checkpoint": ("state that no checkpoint holds",),
            "assert_gradients_finite": ("gradient that is no number",),
            "assert_all_params_receive_grad": GRADIENTS,
            "assert_loss_decreases": ("BN202", "learning rate far too small"),
            "assert_overfits_one_batch": ("BN202", "learning rate far too small"),
            "assert_frozen": ("BN107", "frozen part that trains"),
        },
    ),
    "torchtest2": Tool(
        "torchtest2",
        "`check_model`, then minimum functionality",
        "torchtest2==0.1.0",
        {
            "eval_determinism": ("BN302", "dropout in eval mode"),
            "batch_independence": ("BN303", "batch taken for the sequence"),
            "overfit_batch": ("BN202", "learning rate far too small"),
            "initial_loss": ("over-confident start",),
            "gradient_flow": GRADIENTS,
            "gradient_magnitude": ("gradient that is no number",),
            "params_change": (*GRADIENTS, "BN202", "learning rate far too small"),
            "frozen_params": ("frozen part that trains",),
            "input_dependency": ("half of the input ignored",),
            "gradcheck": ("wrong backward pass",),
        },
    ),
    "torcheck": Tool(
        "torcheck",
        "all its checks, in the loop",
        "torcheck==1.0.1",
        {
            "changing": (*GRADIENTS, "BN202", "learning rate far too small"),
            "unchanging": ("frozen part that trains",),
            "nan": ("gradient that is no number",),
        },
        alone=True,
    ),
    "modeltest": Tool("modeltest", "minimum accuracy", "modeltest==0.2.1"),
    "neural-net-checklist": Tool(
        "neural-net-checklist",
        "all asserts for classification",
        "neural-net-checklist==1.1.0",
        {
            "assert_balanced_classification_cross_entropy_loss_at_init": ("over-confident start",),
            "assert_balanced_classification_cross_entropy_init_calibrated": (
                "over-confident start",
            ),
            "assert_forward_batch_independence": ("BN303", "batch taken for the sequence"),
            "assert_backward_batch_independence": ("BN303", "batch taken for the sequence"),
            "assert_non_zero_gradients": GRADIENTS,
        },
    ),
    "lightning": Tool(
        "Lightning",
        "warnings of `Trainer.fit`",
        "pytorch-lightning",
        {"eval mode": ("BN305",)},
    ),
    "deepchecker": Tool("TheDeepChecker's rule", "CKA and loss in both modes, restated"),
    "allclose": Tool("allclose", "`torch.allclose(train, eval)`"),
    "allclose-loose": Tool("allclose, 0.1", "the same with tolerances of 0.1"),
}


def outcome(case: dict[str, Any], about: dict[str, tuple[str, ...]], ours: bool = False) -> str:
    """How a tool did on a case.

    Parameters
    ----------
    case
        `suite`, `name`, `which`, and what was `said` or why there was an `error`.
    about
        The faults that each check of the tool is about.
    ours
        Whether the checks are our rules, each of which is about the example of its name.
    """
    checks = [check for check, _ in case["said"]]
    if case["which"] == "good":
        return "false alarm" if checks else "no answer" if case["error"] else "silent"
    fault = OWN if case["suite"] == OWN else case["name"]
    if any(fault in about.get(check, ()) or (ours and check == fault) for check in checks):
        return "detected"
    if checks:
        return "symptom only"
    return "no answer" if case["error"] else "silent"


def summary(cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each suite the outcomes of its bad and of its good models."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        counts = found.setdefault(case["suite"], {"bad": Counter(), "good": Counter()})
        counts[case["which"]][case["outcome"]] += 1
    return found


# environments -----------------------------------------------------------------------------------


def environment(folder: Path, tool: Tool) -> Path:
    """The Python of a new environment with PyTorch and one tool."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    pinned = [*install, "-c", ROOT / "constraints.txt", "torch", "numpy", "pytest"]
    commands = [pinned]
    if tool.requirement and tool.alone:
        commands += [[*install, "--no-deps", tool.requirement]]
    elif tool.requirement:
        pinned += [tool.requirement]
    for command in commands:
        subprocess.run([*map(str, command)], check=True)
    return python


def version(python: Path, tool: Tool) -> str:
    """Of the tool's package, or of PyTorch."""
    name = tool.requirement.partition("=")[0] or "torch"
    name = "pytest-bncheck" if name == str(ROOT) else name
    code = f"from importlib.metadata import version; print(version({name!r}))"
    found = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return found.stdout.strip().partition("+")[0]


def _run(python: Path, *arguments: object) -> str:
    done = subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=HERE,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))},
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",  # a bar costs more than a step
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def answers(key: str, python: Path, names: Path, folder: Path) -> list[dict[str, Any]]:
    """What a tool says of all cases, judged."""
    tool, file = TOOLS[key], folder / f"{key}.json"
    _run(python, "peer_tools.py", key, names, file)
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    for case in found:
        case["outcome"] = outcome(case, tool.about, ours=key == "bncheck")
    return found


# results ----------------------------------------------------------------------------------------


def table(tools: dict[str, Any]) -> str:
    """The summary as text."""
    lines = []
    for suite in next(iter(tools.values()))["summary"]:
        lines += ["", f"{suite:<24}" + "".join(f"{name:>14}" for name in OUTCOMES)]
        for entry in tools.values():
            counts = entry["summary"][suite]
            bad, good = counts["bad"], counts["good"]
            cells = [str(bad.get(name, 0)) for name in OUTCOMES[:4]]
            cells += [f"{good.get('false alarm', 0)} of {sum(good.values())}"]
            lines.append(f"{entry['title']:<24}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=TOOLS, help="these tools alone")
    parser.add_argument("--folder", type=Path, help="where environments and answers are kept")
    parser.add_argument("--smoke", action="store_true", help="a few cases: does it work?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        here = Path(sys.executable)
        chosen = ["bncheck", "allclose", "deepchecker"] if options.smoke else options.only or TOOLS
        pythons: dict[str, Path] = {}
        for key in chosen:
            name = key if TOOLS[key].requirement else "plain"
            print(f"{key} ...", flush=True)
            pythons[key] = here if options.smoke else environment(folder / name, TOOLS[key])
        names = folder / "names.json"
        listed = json.loads(_run(pythons[next(iter(chosen))], "peer_cases.py"))
        names.write_text(json.dumps(listed[::9] if options.smoke else listed), encoding="utf-8")
        tools = {}
        for key in chosen:
            judged = answers(key, pythons[key], names, folder)
            tools[key] = {
                "title": TOOLS[key].title,
                "used": TOOLS[key].used,
                "version": version(pythons[key], TOOLS[key]) if TOOLS[key].requirement else "",
                "summary": summary(judged),
                "cases": judged,
            }
            print(f"{key}: {len(judged)} cases", flush=True)
    print(table(tools))
    if not options.smoke:
        write(tools)
    return 0


def write(tools: dict[str, Any]) -> None:
    """Keeps what was measured before of tools that were not chosen now."""
    old = json.loads(RESULT.read_text(encoding="utf-8"))["tools"] if RESULT.exists() else {}
    both = {**old, **tools}
    result = {
        "date": str(datetime.date.today()),
        "python": platform.python_version(),
        "tools": {key: both[key] for key in TOOLS if key in both},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    RESULT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
