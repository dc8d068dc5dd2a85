"""What watching found, in each place that shows it."""

from __future__ import annotations

import json

import jsonschema
import pytest

pytest.importorskip("jinja2")

from pytest_bncheck.reports import github, html, watch, wire
from pytest_bncheck.watch.ledger import Ledger, Seen, Sighting
from pytest_bncheck.watch.places import Place

EVIL = "<script>`a` **b** |"


def sighting(code: str = "BN305", file: str = "shop/trainer.py", line: int = 7) -> Sighting:
    message = f"Net was trained in eval mode, {EVIL}."
    return Sighting(code, "Net", Place(file, line, "fit"), message, "model.train()  # before")


def seen(*sightings: Sighting, nodeid: str = "test_a.py::test", **test: object) -> Ledger:
    ledger, found = Ledger(), Seen(trained=True, minds=True, **test)  # type: ignore[arg-type]
    for each in sightings:
        found.see(each)
    ledger.add(nodeid, [found])
    return ledger


def view(ledger: Ledger, **options: object) -> dict:
    return watch.view(ledger.to_dict(), options.get("select", ()), options.get("ignore", {}))


def test_a_line_is_counted_once_a_test() -> None:
    ledger = seen(sighting(), sighting(), sighting(line=8))
    ledger.add("test_b.py::test", [Seen({("a", "b", Place("", 1, "")): sighting()})])
    assert [(f["line"], f["tests"], f["first"]) for f in view(ledger)["findings"]] == [
        (7, 2, "test_a.py::test"),
        (8, 1, "test_a.py::test"),
    ]
    assert (ledger.tests, ledger.training, ledger.minding) == (2, 1, 1)


def test_what_two_processes_saw_is_put_together() -> None:
    one, other = seen(sighting()), seen(sighting(), sighting("BN307"), nodeid="test_0.py::test")
    other.unseen, other.failed, other.problem = {"compiled": 2}, 1, "TypeError: x"
    merged = Ledger()
    for each in (one, other):
        merged.merge(json.loads(json.dumps(each.to_dict())))
    made = view(merged)
    assert [(f["code"], f["tests"], f["first"]) for f in made["findings"]] == [
        ("BN305", 2, "test_0.py::test"),
        ("BN307", 1, "test_0.py::test"),
    ]
    assert (made["tests"], made["unseen"]) == (2, {"compiled": 2})
    assert (made["failed"], made["problem"]) == (1, "TypeError: x")


def test_errors_come_first_and_what_tests_make_after_the_package() -> None:
    files = ("tests/a.py", "test_it.py", "shop/z.py", "shop/latest_thing.py")
    warnings = [sighting("BN307", file) for file in files]
    made = view(seen(*warnings, sighting("BN305", "tests/nets.py")))
    assert [each["file"] for each in made["findings"]] == [
        "tests/nets.py",
        "shop/latest_thing.py",
        "shop/z.py",
        "test_it.py",
        "tests/a.py",
    ]


def test_select_and_ignore() -> None:
    ledger = seen(sighting(), sighting("BN307"), sighting("BN103"))
    only = view(ledger, select=("BN3",))
    assert {each["code"] for each in only["findings"]} == {"BN305", "BN307"}
    less = view(ledger, ignore={"predicts-in-train-mode": "sampled so", "BN1": None})
    assert [each["code"] for each in less["findings"]] == ["BN305"]
    reasons = {each["code"]: each["reason"] for each in less["suppressed"]}
    assert reasons == {"BN103": "ignored", "BN307": "ignored: sampled so"}
    assert "1 error, 0 warnings, 2 ignored" in " ".join(watch.total(less, 200))


def test_the_terminal_has_80_columns() -> None:
    made = view(seen(sighting(file="a/b\x1b[31m.py"), unseen="compiled by torch.compile"))
    ((rule, rest, below),) = watch.lines(made)
    assert rule == "BN305 trained-in-eval-mode"
    assert rest == r"  a/b\x1b[31m.py:7 in fit"
    assert below[-2:] == ["      Seen in test_a.py::test.", "        model.train()  # before"]
    lines = [rule + rest, *below, *watch.total(made)]
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "not seen in 1 test: what is compiled by torch.compile"


def test_the_json_report_holds_it() -> None:
    document = wire.document([], view(seen(sighting()), ignore={"BN305": "x"}))
    jsonschema.validate(json.loads(json.dumps(document)), wire.schema())
    assert "watch" not in wire.document([])
    del document["watch"]["tests"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, wire.schema())


def test_github_gets_warnings_at_the_lines() -> None:
    (found,) = view(seen(sighting()))["findings"]
    command = github.watch_annotation(found, "src/a,b.py")
    assert command.startswith("::warning file=src/a%2Cb.py,line=7,title=BN305 trained-in-eval")
    assert command.count("\n") == 0
    summary = github.watch_summary(view(seen(sighting())))
    assert "## bncheck watch: watched 1 test" in summary
    assert "<script>" not in summary
    assert summary.count("\n|") == 3
    assert "| rule" not in github.watch_summary(view(seen()))


def test_html_has_a_table() -> None:
    page = html.page(wire.document([], view(seen(sighting()))))
    assert "<h1>1 test watched</h1>" in page
    assert "shop/trainer.py:7" in page
    assert "&lt;script&gt;" in page
    assert "<script>`a`" not in page
    assert "watch" not in html.page(wire.document([])).partition("<main>")[2].partition("<scr")[0]
