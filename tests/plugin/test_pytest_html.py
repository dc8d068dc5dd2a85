"""The report of pytest-html, where that plugin is there."""

from __future__ import annotations

import html
import json
import re

import pytest

from project import BROKEN

pytest.importorskip("pytest_html")


def test_each_test_shows_its_checks(project, xdist_args):
    project.pytester.makepyfile(
        test_it=BROKEN
        + """
@pytest.mark.bn_consistency(steps=5)
@pytest.mark.parametrize("name", ["<script>alert(1)</script>"])
def test_bad(name): ...

def test_good(bncheck):
    bncheck(ToyModel(), toy_batch(), steps=80)
    bncheck(ToyModel(), toy_batch(), steps=80)

def test_ordinary(): ...
"""
    )
    options = ("--html=report.html", "--self-contained-html")
    project.run("--bncheck", *options, *xdist_args).assert_outcomes(failed=1, passed=2)
    page = (project.path / "report.html").read_text(encoding="utf-8")
    blob = re.search(r'data-jsonblob="(.*?)"', page, re.DOTALL)
    assert blob
    tests = json.loads(html.unescape(blob[1]))["tests"]
    logs = {name.partition("[")[0]: test[0]["log"] for name, test in tests.items()}
    bad, good = logs["test_it.py::test_bad"], logs["test_it.py::test_good"]
    assert bad.startswith("FAIL  test_it.py::test_bad[&lt;script&gt;alert(1)&lt;/script&gt;]\n")
    assert "BN101 running-stats-underconverged; train 100 %, eval 38 %" in bad
    assert "<script>" not in bad
    assert good.startswith("PASS  test_it.py::test_good: train 100 %, eval 100 %\n")
    assert "PASS  test_it.py::test_good #2: train" in good
    assert re.search(r"norm +0.1 +80 +0.0 % +0.01", good)
    assert "PASS" not in logs["test_it.py::test_ordinary"]
