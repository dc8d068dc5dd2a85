"""The JSON Schema that the package ships describes the JSON report."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import jsonschema
import pytest

from pytest_bncheck import report as reports
from pytest_bncheck.report import (
    AfterUpdates,
    Curves,
    LayerReport,
    Predictions,
    Projected,
    Remedies,
    Report,
    Samples,
    Scored,
    WithMomentum,
)
from pytest_bncheck.reports import wire
from pytest_bncheck.types import Finding, Suppressed

SCHEMA = wire.schema()
NAN, INF = float("nan"), float("inf")
FULL = Report(
    nodeid="test.py::test",
    verdict="fail",
    bn_verdict="broken",
    planned_updates=1000,
    batch_size=3,
    findings=[Finding("BN101", "a-name", "error", "m", "c", ["bn"], "r", {"gap": NAN, "x": None})],
    notes=[Finding("BN106", "a-name", "note", "m", "c", ["bn"], "r", {"gap": NAN, "x": None})],
    suppressed=[Suppressed("BN106", "a-name", "ignored", "m")],
    not_checked=["BN108 a-name needs streams."],
    predictions=Predictions(
        *[NAN] * 6, Scored(INF, 1), Scored(-INF), Scored(NAN, 1), Projected(NAN, 1, *[INF] * 4)
    ),
    layers=[LayerReport("bn", "BatchNorm2d", None, None, 5, *[None] * 5),
            LayerReport("bn", "BatchNorm2d", 0.1, 0.1, 5, 0.5, 9, NAN, INF, -INF, NAN)],
    remedies=Remedies(5, 0.5, True),
    training=reports.Training([1.0, NAN, INF, -INF]),
    curves=Curves(
        0.25, 0.1, Samples([[NAN, 1.0]], [[INF, -INF]], [True]),
        [AfterUpdates(5, NAN)], [WithMomentum(0.5, 0.5, None)],
    ),
)  # fmt: skip


def document(check: dict[str, Any]) -> dict[str, Any]:
    made = wire.document([check])
    return json.loads(json.dumps(made, allow_nan=False))


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "report", [FULL, Report(), Report(verdict="error", error="ValueError: x", nodeid="t", index=1)]
)
def test_reports_fit(report: Report) -> None:
    jsonschema.validate(document(report.to_dict()), SCHEMA)


OPTIONAL = {"curves", "not_checked"}


def test_only_what_plots_show_and_what_was_not_checked_may_be_missing() -> None:
    check = FULL.to_dict()
    for key in OPTIONAL:
        del check[key]
    jsonschema.validate(document(check), SCHEMA)


def test_what_was_not_checked_is_there_only_if_there_is_something() -> None:
    assert "not_checked" not in Report().to_dict()
    assert FULL.to_dict()["not_checked"] == FULL.not_checked


def objects(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all objects in a document."""
    here = [path] if isinstance(value, dict) else []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    inner = [(key, x) for key, x in items if isinstance(x, (dict, list))]
    return here + [found for key, x in inner for found in objects(x, (*path, key))]


FREE = ("environment", "evidence")
CLOSED = [
    path for path in objects(document(FULL.to_dict())) if path[-1:] not in [(x,) for x in FREE]
]


@pytest.mark.parametrize("path", CLOSED, ids=lambda path: ".".join(map(str, path)) or "document")
def test_no_key_may_be_missing_or_new(path: tuple[str | int, ...]) -> None:
    whole = document(FULL.to_dict())
    part: Any = whole
    for key in path:
        part = part[key]
    for key in set(part) - OPTIONAL:
        value = part.pop(key)
        with pytest.raises(jsonschema.ValidationError, match="required property"):
            jsonschema.validate(whole, SCHEMA)
        part[key] = value
    part["more"] = 1
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate(whole, SCHEMA)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "infinite", ""])
def test_other_words_are_no_numbers(name: str) -> None:
    check = FULL.to_dict()
    check["predictions"]["gap"] = name
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document(check), SCHEMA)


def test_words_are_those_of_the_types() -> None:
    properties = SCHEMA["$defs"]["check"]["properties"]
    hints = typing.get_type_hints(Report, vars(reports) | vars(typing))
    assert tuple(properties["verdict"]["enum"]) == typing.get_args(hints["verdict"])
    known = {field.name for field in dataclasses.fields(Report)}
    assert set(properties) == known
