"""What a rule is."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from typing import Any, ClassVar

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.types import Capability, Finding, Severity


class Rule(ABC):
    """One pitfall: its code, its name, its page (the class's docstring) and how to find it.

    Attributes
    ----------
    code, name
        Both are accepted wherever a user names a rule, and both are printed.
    severity
        The usual one; a milder case of an error is a warning or a note.
    error_when
        When a warning is an error, as the end of a sentence; empty if it never is.
    needs
        Capabilities of an adapter without which the rule never finds anything.
    intended
        The designs that a user can declare, and that the rule then says nothing about.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    error_when: ClassVar[str] = ""
    needs: ClassVar[frozenset[Capability]] = frozenset()
    intended: ClassVar[frozenset[str]] = frozenset()

    @property
    def page(self) -> str:
        """The rule's documentation, as `--bncheck-explain` prints it."""
        return f"{self.code} {self.name} ({self.severities})\n\n{inspect.getdoc(type(self))}\n"

    @property
    def severities(self) -> str:
        """``warning; error when ...``, as README, docs and page say it."""
        return (
            f"{self.severity}; error when {self.error_when}" if self.error_when else self.severity
        )

    @abstractmethod
    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        """The rule's finding, or None.

        Parameters
        ----------
        explained
            Names of the layers that an earlier finding explains already.
        """

    def covers(self, design: str, finding: Finding, evidence: Evidence) -> bool:
        """Whether a finding is about a declared design of `intended`, and about nothing else."""
        return True

    def explains(self, finding: Finding) -> Sequence[str]:
        """The layers whose difference between the modes a finding explains."""
        return finding.layers

    def finding(
        self,
        message: str,
        *,
        cause: str,
        remedy: str,
        severity: Severity | None = None,
        layers: Sequence[str] = (),
        **evidence: Any,
    ) -> Finding:
        """A finding of this rule."""
        return Finding(
            code=self.code,
            name=self.name,
            severity=severity or self.severity,
            message=message,
            cause=cause,
            layers=list(layers),
            remedy=remedy,
            evidence=evidence,
        )
