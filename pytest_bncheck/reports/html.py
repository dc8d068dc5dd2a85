"""The HTML report: one file that needs no network, from the JSON objects of the checks."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pytest_bncheck.reports import plots, wire
from pytest_bncheck.reports import watch as watched
from pytest_bncheck.reports.layout import are_telling, printable
from pytest_bncheck.reports.sentences import (
    NOT_ALIGNED,
    WORST_FIRST,
    agreement,
    assumed,
    headline,
    not_checked,
    problem,
    suppressed,
)
from pytest_bncheck.wording import listing, number, percent, plural

Expected = Callable[[Mapping[str, Any]], bool]

FRAME_HEIGHT = 720
"""CSS pixels of a report in a notebook."""

CALM = {"pass", "warn"}
"""Verdicts whose check is folded up."""

_SPACES = "\n\t\u00a0"

LOSSES = {"recalibrated": "recalibrated", "eval": "eval", "train": "training"}


def page(document: Mapping[str, Any], is_expected: Expected = lambda check: False) -> str:
    """A report on all checks of a run.

    Parameters
    ----------
    document
        The JSON report.
    is_expected
        Whether a check failed and its test did not, because that was expected.
    """
    checks = sorted(document["checks"], key=lambda check: WORST_FIRST.index(check["verdict"]))
    views = [_view(check, number) for number, check in enumerate(checks, 1)]
    for view in views:
        view["expected"] = is_expected(view)
    watch = document.get("watch")
    title = _title(document["summary"])
    if watch and not checks:
        title = f"{plural(watch['tests'], 'test')} watched"
    return _render(views, title=title, document=document, watch=watch)


def write(path: Path, document: Mapping[str, Any], is_expected: Expected) -> None:
    """Write the report to a file, in one piece.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    wire.write_text(path, page(document, is_expected))


def frame(check: Mapping[str, Any]) -> str:
    """A report on one check for a notebook: in a frame, so that no style leaks in or out."""
    content = _render([_view(check, 1)], title="bncheck", document=None)
    return (
        f'<iframe srcdoc="{html.escape(content)}" sandbox="allow-scripts" title="bncheck report" '
        f'style="width: 100%; height: {FRAME_HEIGHT}px; border: 0"></iframe>'
    )


def _render(
    checks: Sequence[Mapping[str, Any]],
    title: str,
    document: Mapping[str, Any] | None,
    watch: Mapping[str, Any] | None = None,
) -> str:
    environment = Environment(
        loader=PackageLoader("pytest_bncheck.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent, "time": _time}
    environment.filters |= {"data": _data, "prose": _prose}
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        checks=checks,
        title=title,
        document=document,
        watch=watch and {**watch, "total": " ".join(watched.total(watch, 10_000))},
        seen=watched.tests,
        style=Markup(style),  # from the package, like the script
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _visible(value: Any) -> Any:
    """What the page shows, without characters that hide or turn text: names can hold anything."""
    if not isinstance(value, str) or value.isprintable():
        return value
    text = printable(value, keep=_SPACES)
    return Markup(text) if isinstance(value, Markup) else text


def _asset(name: str) -> str:
    return (resources.files("pytest_bncheck.reports") / "templates" / name).read_text("utf-8")


def _title(summary: Mapping[str, int]) -> str:
    checks, bad = summary["checks"], summary["failed"] + summary["errored"]
    if not checks:
        return "No model was checked"
    if not bad:
        return "The check passed" if checks == 1 else f"All {checks} checks passed"
    return f"{bad} of {plural(checks, 'check')} failed"


# one check --------------------------------------------------------------------------------------


def _view(check: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A check with everything that the template shows."""
    path, _, test = check["nodeid"].partition("::")
    limits = check["curves"] or {"gap_limit": None, "distortion_limit": None}
    return {
        **check,
        "id": f"check-{number}",
        "path": path if test else "",
        "test": (test or path or "check") + (f" #{check['index'] + 1}" if check["index"] else ""),
        "open": check["verdict"] not in CALM,
        "expected": False,
        "headline": _headline(check),
        "rest": _rest(check["findings"]),
        "modes": _modes(check),
        "measures": _measures(check, limits),
        "assumed": assumed(check),
        "not_checked": not_checked(check),
        "findings": [_finding(finding) for finding in check["findings"]],
        "notes": [_finding(note) for note in check["notes"]],
        "limit": limits["distortion_limit"],
        "shares": are_telling([layer["attribution"] for layer in check["layers"]]),
        "over": _over(check["layers"], limits["distortion_limit"]),
        "figures": list(_figures(check)),
        "remedy_figures": list(_remedy_figures(check)),
    }


def _headline(check: Mapping[str, Any]) -> str:
    if check["verdict"] == "error":
        return problem(check)
    if check["findings"]:
        return headline(check)
    if not check["layers"]:
        return "No layer has running statistics"
    compared = check["predictions"]["projected"] or check["predictions"]
    if compared["gap"] is None:
        return NOT_ALIGNED
    return f"Eval mode {agreement(check)}: gap {_number(compared['gap'])}{suppressed(check)}"


def _rest(findings: Sequence[Mapping[str, Any]]) -> str:
    """The message of the first finding without the headline, which stands above."""
    return str(findings[0]["message"]).partition(". ")[2] if findings else ""


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **finding,
        "named": listing(finding["layers"]),
        "steps": list(_remedy(finding["remedy"])),
    }


def _remedy(remedy: str) -> Iterator[dict[str, str]]:
    """The things to do, each with its lines of code."""
    words = ""
    code: list[str] = []
    for line in remedy.splitlines():
        if line.startswith("- "):
            if words or code:
                yield {"text": words, "code": "\n".join(code)}
            words, code = line[2:], []
        else:
            code.append(line)
    if words or code:
        yield {"text": words, "code": "\n".join(code)}


def _modes(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Loss and accuracy of each mode that was tried."""
    predictions = check["predictions"]
    names = {
        "train": "Training mode",
        "eval": "Eval mode" + (", measured" if predictions["projected"] else ""),
        "projected": f"Eval mode, projected to {check['planned_updates']} updates",
        "recalibrated": "Recalibrated",
    }
    return [
        {"name": name, **predictions[key]}
        for key, name in names.items()
        if predictions[key] is not None
    ]


def _measures(check: Mapping[str, Any], limits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers of the verdict, with what they mean and their limits."""
    predictions = check["predictions"]
    projected = predictions["projected"] or {}
    rows = (
        ("gap", "eval against training prediction, relative", limits["gap_limit"]),
        ("floor", "gap of converged statistics", None),
        ("excess", "eval against recalibrated prediction", limits["gap_limit"]),
        ("distortion", "worst layer, in sigma", limits["distortion_limit"]),
        ("retained", "share of the learned that eval keeps", None),
        ("argmax_agreement", "share of equal decisions", None),
    )
    return [
        {
            "name": name.replace("_", " ").capitalize(),
            "meaning": meaning,
            "value": predictions[name],
            "projected": projected.get(name),
            "limit": limit,
            "over": _is_over(predictions[name], limit),
            "projected_over": _is_over(projected.get(name), limit),
        }
        for name, meaning, limit in rows
        if predictions[name] is not None
    ]


def _is_over(value: Any, limit: float | None) -> bool:
    if value is None or limit is None:
        return False
    return isinstance(value, str) or value > limit


def _over(layers: Sequence[Mapping[str, Any]], limit: float | None) -> list[Mapping[str, Any]]:
    return [layer for layer in layers if _is_over(layer["distortion"], limit)]


# figures ----------------------------------------------------------------------------------------


def _figures(check: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was measured."""
    losses, curves = check["training"]["loss"], check["curves"]
    if any(plots.drawable(loss) for loss in losses):
        scored = check["predictions"]
        ends = {name: (scored[key] or {}).get("loss") for key, name in LOSSES.items()}
        yield _figure(
            "Training",
            f"Loss over {plural(len(losses), 'step')}, and then of each mode.",
            plots.training(losses, ends),
        )
    if curves and check["predictions"]["distortion"] is not None and check["layers"]:
        limit = curves["distortion_limit"]
        yield _figure(
            "Distortion along the depth",
            _depth_caption(check["layers"], limit),
            plots.depth([each["distortion"] for each in check["layers"]], limit),
        )
    if curves and curves["samples"]:
        yield _figure(
            "Training against eval predictions",
            _samples_caption(curves["samples"]),
            plots.samples(curves["samples"]),
        )


def _remedy_figures(check: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was predicted for the remedies."""
    curves, remedies = check["curves"], check["remedies"]
    if not curves or not remedies:
        return
    gap, floor = check["predictions"]["gap"], check["predictions"]["floor"]
    limit = curves["gap_limit"]
    if curves["updates"]:
        points = [(0, gap), *((point["updates"], point["gap"]) for point in curves["updates"])]
        chosen = remedies["further_updates"]
        yield _figure(
            "Train for longer",
            f"{plural(chosen, 'further update')} would close the gap, with the weights as they are."
            if chosen is not None
            else "No number of further updates that was tried closes the gap.",
            plots.updates(points, limit, floor, chosen),
        )
    if curves["momentum"]:
        momentum = remedies["momentum"]
        yield _figure(
            "Shorten the memory",
            _momentum_caption(momentum, check),
            plots.momenta(
                [*_current_momentum(check), *curves["momentum"]],
                limit,
                floor,
                momentum,
            ),
        )


def _figure(title: str, caption: str, plot: plots.Plot) -> dict[str, Any]:
    return {"title": title, "caption": caption, "plot": plot, "size": (plots.WIDTH, plots.HEIGHT)}


def _depth_caption(layers: Sequence[Mapping[str, Any]], limit: float) -> str:
    over = _over(layers, limit)
    if not over:
        return f"No layer of {len(layers)} is over the limit of {_number(limit)} sigma."
    worst = max(over, key=lambda layer: _sort_key(layer["distortion"]))
    verb = "is" if len(over) == 1 else "are"
    return (
        f"{len(over)} of {plural(len(layers), 'layer')} {verb} over the limit of "
        f"{_number(limit)} sigma; the worst is layer {worst['name']} "
        f"({_number(worst['distortion'])})."
    )


def _samples_caption(samples: Mapping[str, Any]) -> str:
    same = samples["same_decision"]
    count = plural(len(samples["train"]), "sample")
    if same is None:
        return f"{count}; on the diagonal, eval mode repeats training mode."
    changed = len(same) - sum(same)
    verb = "changes its" if changed == 1 else "change their"
    return f"{changed} of {count} {verb} decision (red); on the diagonal, nothing changes."


def _momentum_caption(chosen: float | None, check: Mapping[str, Any]) -> str:
    steps, curves = plural(check["steps"], "step"), check["curves"]
    if chosen is None:
        return f"No momentum that was tried would have sufficed for the {steps} made."
    text = f"Momentum {_number(chosen)} would have sufficed for the {steps} made"
    if any(
        _is_over(point["gap"], curves["gap_limit"])
        for point in curves["momentum"]
        if point["momentum"] == chosen
    ):
        text += ": the gap is still over its limit, but eval mode decides as well"
    return f"{text}."


def _current_momentum(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The momentum of the model, if all layers share it."""
    used = {(layer["momentum"], layer["update_rate"]) for layer in check["layers"]}
    if len(used) != 1 or None in next(iter(used)):
        return []
    ((momentum, rate),) = used
    gap = check["predictions"]["gap"]
    return [{"momentum": momentum, "update_rate": rate, "gap": gap}]


# words and numbers --------------------------------------------------------------------------------


def _prose(text: str) -> Markup:
    """A message, with `code` set as such, and each number beside its unit."""
    parts = [escape(part.replace(" %", "\u00a0%")) for part in text.split("`")]
    if len(parts) % 2 == 0:  # one mark without its other
        return Markup("`").join(parts)
    pieces = [Markup("<code>{}</code>").format(p) if k % 2 else p for k, p in enumerate(parts)]
    return Markup("").join(pieces)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _number(value: Any, aligned: bool = False) -> str:
    """A number of the JSON report: three significant digits, a dash for None.

    `aligned` keeps zeros at the end, for columns.
    """
    if value is not None and not _is_number(value):
        return str(value)
    if value is not None and 1000 <= abs(value) < 1e5:
        return number(value, ".0f")
    return number(value, "#.3g" if aligned and value else ".3g", missing="–")


def _percent(value: Any, digits: int = 0) -> str:
    return percent(value, digits) if _is_number(value) else _number(value)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f}\u00a0ms"
    return f"{seconds:.1f}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"


def _sort_key(value: Any) -> float:
    """A number to compare by: what is not a number is worse than any."""
    number = float(value)
    return math.inf if math.isnan(number) else number


def _data(value: Any) -> str:
    """A number for the script that sorts, which reads Infinity."""
    if value is None:
        return ""
    key = _sort_key(value)
    return f"{key:.17g}".replace("inf", "Infinity")
