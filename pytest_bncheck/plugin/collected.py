"""The checks of a run as they arrive, from this process and from workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CRASHED = "WorkerCrash: the worker process died in this test; any checks are lost"
"""The error of a check whose process ended before it could be reported."""


@dataclass
class Collected:
    """The checks of a run, and how their tests ended.

    Attributes
    ----------
    texts
        By test and its run, the latest string of `wire.dumps`: a rerun replaces what it repeats.
    places
        By test, the file, relative to pytest's root, and its line, counted from 1.
    failed
        Tests that did not pass. Where a check failed and its test passed, that was expected.
    crashed
        Tests in which a worker process died.
    marked
        Tests that make checks, as the workers report them; None before any worker has.
    """

    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    crashed: list[str] = field(default_factory=list)
    marked: set[str] | None = None

    def learn(self, marked: str) -> None:
        """Take in the JSON list of marked tests that a worker sends when it is done."""
        self.marked = {*(self.marked or ()), *json.loads(marked)}

    def checks(self) -> list[dict[str, Any]]:
        """All checks by test and index, with an error for each test that a worker died in.

        If every worker died, it is unknown whether such a test makes checks; one error too many
        is better than a check that is lost silently.
        """
        if not self.texts and not self.crashed:  # most runs; spares them the import
            return []
        from pytest_bncheck.report import Report
        from pytest_bncheck.reports import wire

        texts = dict(self.texts)
        reported = {nodeid for (nodeid, _), text in texts.items() if wire.loads(text)}
        for nodeid in self.crashed:
            makes_checks = self.marked is None or nodeid in self.marked
            if makes_checks and nodeid not in reported:
                lost = Report(nodeid=nodeid, verdict="error", error=CRASHED)
                texts[nodeid, ""] = wire.dumps([lost.to_dict()])
        return wire.in_order(texts.values())

    def is_expected(self, check: Mapping[str, Any]) -> bool:
        """Whether a check failed and its test did not: ``xfail``, or ``pytest.raises``."""
        return check["verdict"] in ("fail", "error") and check["nodeid"] not in self.failed
