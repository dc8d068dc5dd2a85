"""What was seen in a run: counted by rule, model and line, in exact builtins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pytest_bncheck.exact import exact
from pytest_bncheck.watch.places import Place

MOST = 50
"""Sightings of one test."""


class Sighting(NamedTuple):
    """A fault that was seen in a test.

    Attributes
    ----------
    code
        Of its rule.
    model
        The class of the model.
    place
        The user's line.
    message, remedy
        What is wrong and how much, and what to do.
    """

    code: str
    model: str
    place: Place
    message: str
    remedy: str


@dataclass
class Seen:
    """What was seen in one test.

    Attributes
    ----------
    sightings
        Each once, by rule, model and line.
    trained
        Whether a model was trained.
    minds
        Whether a layer ran that minds the mode.
    unseen
        Why something could not be seen; empty if all could.
    problem
        Why watching it ended early; empty if it did not.
    """

    sightings: dict[tuple[str, str, Place], Sighting] = field(default_factory=dict)
    trained: bool = False
    minds: bool = False
    unseen: str = ""
    problem: str = ""

    def see(self, sighting: Sighting) -> None:
        """Add a sighting."""
        if len(self.sightings) < MOST:
            key = sighting.code, sighting.model, sighting.place
            self.sightings.setdefault(key, sighting)


@dataclass
class Ledger:
    """The sightings of a run.

    Attributes
    ----------
    tests
        Tests that were watched.
    training
        Of those, tests in which a model was trained.
    minding
        Of those, tests with a model whose layers mind the mode.
    unseen
        Tests in which something could not be watched, by its reason.
    findings
        By rule, model and line, as the JSON report has them.
    failed
        Tests whose watching ended early.
    problem
        Why that of the first of them did; empty if there are none.
    """

    tests: int = 0
    training: int = 0
    minding: int = 0
    failed: int = 0
    unseen: dict[str, int] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    problem: str = ""

    def add(self, nodeid: str, tests: Iterable[Seen]) -> None:
        """Take in a test that has ended, as each framework saw it."""
        seen = list(tests)
        self.tests += 1
        self.training += any(each.trained for each in seen)
        self.minding += any(each.trained and each.minds for each in seen)
        for reason in {each.unseen for each in seen if each.unseen}:
            self.unseen[reason] = self.unseen.get(reason, 0) + 1
        problems = [each.problem for each in seen if each.problem]
        self.failed += bool(problems)
        self.problem = self.problem or "".join(problems[:1])
        for each in seen:
            self._count(nodeid, each.sightings.values())

    def _count(self, nodeid: str, sightings: Iterable[Sighting]) -> None:
        for seen in sightings:
            key = f"{seen.code} {seen.model} {seen.place}"
            found = self.findings.get(key)
            if found is None:
                self.findings[key] = {
                    "code": seen.code,
                    "model": seen.model,
                    "file": seen.place.file,
                    "line": seen.place.line,
                    "function": seen.place.function,
                    "message": seen.message,
                    "remedy": seen.remedy,
                    "tests": 1,
                    "first": nodeid,
                }
            else:
                found["tests"] += 1

    def merge(self, other: Mapping[str, Any]) -> None:
        """Take in what another process saw, as `to_dict` gives it."""
        self.tests += other["tests"]
        self.training += other["training"]
        self.minding += other["minding"]
        self.failed += other["failed"]
        for reason, count in other["unseen"].items():
            self.unseen[reason] = self.unseen.get(reason, 0) + count
        for key, found in other["findings"].items():
            known = self.findings.setdefault(key, {**found, "tests": 0})
            if found["first"] < known["first"]:  # whichever process comes first
                known |= {name: found[name] for name in ("first", "message", "remedy")}
            known["tests"] += found["tests"]
        self.problem = self.problem or other["problem"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as exact builtins."""
        made: dict[str, Any] = exact(vars(self))
        return made
