"""Checks outside pytest, and how adapters are found there."""

from __future__ import annotations

import inspect
import re
from importlib import metadata

import pytest

from pytest_bncheck import InputError, Report, adapters, check, settings
from toy import ToyAdapter, ToyModel, toy_batch


@pytest.fixture
def toy_entry_point(monkeypatch):
    """The toy framework as an installed package."""

    class EntryPoint:
        value = "toy:find"

        def load(self):
            return lambda model: ToyAdapter if isinstance(model, ToyModel) else None

    monkeypatch.setattr(metadata, "entry_points", lambda group: [EntryPoint()])
    adapters._entry_points.cache_clear()
    yield EntryPoint
    adapters._entry_points.cache_clear()


@pytest.mark.usefixtures("toy_entry_point")
def test_check_never_raises_on_findings():
    report = check(ToyModel(0.01), toy_batch(), steps=5)
    assert isinstance(report, Report)
    assert (report.ok, report.verdict, report.nodeid) == (False, "fail", "")
    assert report.findings[0].code == "BN101"
    assert "BN101" in str(report)
    assert check(ToyModel(), batches=[toy_batch(), toy_batch(seed=1)]).ok


@pytest.mark.usefixtures("toy_entry_point")
def test_bad_input():
    with pytest.raises(InputError, match=r"seed=-1 \(from call\)"):
        check(ToyModel(), toy_batch(), seed=-1)
    with pytest.raises(InputError, match="neither was given"):
        check(ToyModel())
    with pytest.raises(InputError, match="cannot check a model of type int"):
        check(3, toy_batch())


def test_its_docstring_names_every_option():
    spelled_out = {*inspect.signature(check).parameters}
    assert spelled_out | {*re.findall(r"`(\w+)`", check.__doc__)} >= {*settings.OPTIONS}


def test_entry_point_that_cannot_be_loaded(toy_entry_point, monkeypatch):
    monkeypatch.setattr(toy_entry_point, "load", lambda self: 1 / 0)
    with pytest.raises(InputError, match="the adapter toy:find could not be loaded: ZeroDivision"):
        check(3, toy_batch())


def test_a_dataset_of_known_length_ends():
    from pytest_bncheck.experiment.batches import gather

    class Dataset:
        num_batches = 2

        def __getitem__(self, index):
            return index

    assert gather(None, Dataset(), seed=0) == [0, 1]
