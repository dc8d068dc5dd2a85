"""How long a check and its parts take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pytest_bncheck.report import Seconds


@dataclass
class Clock:
    """Wall time of the parts of a check, from its making on."""

    begin: float = field(default_factory=time.perf_counter)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        """End a part."""
        self.laps[name] = time.perf_counter() - self.begin - sum(self.laps.values())

    def stop(self) -> Seconds:
        """The time of every part and of the whole."""
        return Seconds(**self.laps, total=time.perf_counter() - self.begin)
