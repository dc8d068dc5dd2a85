"""Where pytest's configuration and items keep what the plugin knows of them.

Imported at the start of every run: a key must be the same object for all that use it, also where
pytester forgets, after each run in its own process, the modules that the run has imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_bncheck.plugin.attempt import Attempt
    from pytest_bncheck.plugin.checking import Checking
    from pytest_bncheck.plugin.options import Session
    from pytest_bncheck.plugin.results import Results
    from pytest_bncheck.plugin.watching import Watching

SESSION: pytest.StashKey[Session] = pytest.StashKey()
"""Where the configuration keeps the options of the run."""

RESULTS: pytest.StashKey[Results] = pytest.StashKey()
"""Where the configuration keeps what takes in the results of all checks."""

CHECKING: pytest.StashKey[Checking] = pytest.StashKey()
"""Where the configuration keeps what begins attempts, while checks are on."""

WATCHING: pytest.StashKey[Watching] = pytest.StashKey()
"""Where the configuration keeps what watches the tests, in watch mode."""

CURRENT: pytest.StashKey[pytest.Item] = pytest.StashKey()
"""Where the configuration keeps the item that runs."""

ATTEMPT: pytest.StashKey[Attempt] = pytest.StashKey()
"""Where an item keeps its latest attempt."""

RUN_NUMBER: pytest.StashKey[int] = pytest.StashKey()
"""Where an item keeps the number of its run: an item can be in a session twice."""
