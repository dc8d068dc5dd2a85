"""Both frameworks, one after the other."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["torch", "keras"])
def framework(request: pytest.FixtureRequest) -> str:
    """Each framework that is installed."""
    pytest.importorskip(request.param)
    return request.param
