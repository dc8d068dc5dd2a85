"""Parsing and merging of options."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_bncheck import settings
from pytest_bncheck.types import InputError, Settings


def optimizer(params): ...


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 5, 5),
        ("steps", 0, 0),
        ("steps", "auto", "auto"),
        ("steps", "7", 7),
        ("steps", np.int64(7), 7),
        ("planned_updates", 1, 1),
        ("device", "cuda:1", "cuda:1"),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("gap_tolerance", 1, 1.0),
        ("gap_tolerance", "0.5", 0.5),
        ("distortion_tolerance", np.float32(0.5), 0.5),
        ("strict", "no", False),
        ("strict", True, True),
        ("select", "BN1, running-stats-invalid", ("BN1", "running-stats-invalid")),
        ("select", ["BN1,BN2"], ("BN1", "BN2")),
        ("ignore", "BN101: a reason, with: signs", {"BN101": "a reason, with: signs"}),
        ("ignore", ["BN101", "BN2:"], {"BN101": None, "BN2": None}),
        ("ignore", {"BN101": "why", "BN2": None}, {"BN101": "why", "BN2": None}),
        ("intended", "frozen-batchnorm", ("frozen-batchnorm",)),
        ("intended", ["stochastic-eval"], ("stochastic-eval",)),
        ("restore", False, False),
        ("optimizer", optimizer, optimizer),
    ],
)
def test_allowed(name, value, expected):
    parsed = settings.parse(name, value, "call")
    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("steps", bad) for bad in (-1, True, 1.5, "five", "", [5], math.nan)],
        *[("planned_updates", bad) for bad in (0, False, "auto", 10**400)],
        *[("device", bad) for bad in ("", 0, " ")],
        *[("seed", bad) for bad in (-1, 2**32, True, 0.0)],
        *[
            (name, bad)
            for name in ("gap_tolerance", "distortion_tolerance")
            for bad in (0, -1, math.nan, math.inf, "nan", "x", True, [1.0])
        ],
        *[("strict", bad) for bad in (1, "maybe", 0.0)],
        *[("select", bad) for bad in (5, ["BN1", 5], {"BN1": "x"})],
        *[("ignore", bad) for bad in (5, [["BN1"]], {"BN1": 5}, "{'BN1': 'x'}")],
        *[("intended", bad) for bad in ("frozen", ["frozen-batchnorm", "x"], 5)],
        *[("restore", bad) for bad in ("maybe", 1)],
        *[("loss", bad) for bad in ("mse", 5)],
        *[("optimizer", bad) for bad in ("adam", 0.1)],
        ("train_step", 1),
        ("forward", "x"),
    ],
)
def test_refused(name, value):
    with pytest.raises(InputError) as info:
        settings.parse(name, value, "marker")
    message = str(info.value)
    assert message.startswith(f"{name}=")
    assert "(from marker)" in message
    assert "allowed: " in message
    assert "\n" not in message


def test_unknown_rule_names_close_ones():
    with pytest.raises(InputError, match=r"ignore='BN999'.*from --bncheck-ignore.*BN"):
        settings.parse("ignore", "BN999", "--bncheck-ignore")


def test_unknown_option_names_a_close_one():
    with pytest.raises(InputError, match=r'unknown option "step".*did you mean "steps"'):
        settings.source({"step": 5}, "call")
    with pytest.raises(InputError, match="known are steps"):
        settings.source({"xyz": None}, "call")


def test_long_values_stay_on_one_line():
    with pytest.raises(InputError) as info:
        settings.parse("steps", np.zeros((100, 100)), "call")
    assert len(str(info.value)) < 250


def test_precedence_is_decided_by_none():
    call = settings.source({"steps": 0, "strict": None}, "call")
    marker = settings.source({"steps": 5, "strict": False}, "marker")
    ini = settings.source({"strict": True, "seed": 3}, "bncheck_seed in tox.ini")
    merged = settings.merge(call, marker, ini)
    assert merged == Settings(
        steps=0,
        strict=False,
        seed=3,
        origins={"steps": "call", "seed": "bncheck_seed in tox.ini", "strict": "marker"},
    )
    assert settings.merge() == Settings()


def test_ignore_and_intended_add_up_and_the_stronger_reason_wins():
    call = settings.source({"ignore": {"BN1": "near"}, "intended": "stochastic-eval"}, "call")
    ini = settings.source({"ignore": ["BN1: far", "BN2"], "intended": "frozen-batchnorm"}, "ini")
    merged = settings.merge(call, ini)
    assert merged.ignore == {"BN1": "near", "BN2": None}
    assert merged.intended == ("stochastic-eval", "frozen-batchnorm")
    assert merged.origins["ignore"] == "call, ini"


def test_recipe_takes_the_strongest_of_each():
    first = settings.source({"loss": max}, "call")
    second = settings.source({"loss": min, "forward": sum}, "marker")
    found = settings.recipe(first, second)
    assert (found.loss, found.forward, found.optimizer) == (max, sum, None)
