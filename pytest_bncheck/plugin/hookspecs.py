"""The hook that other packages and a project's conftest.py can implement."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookspec(firstresult=True)
def pytest_bncheck_adapters(model: Any) -> Any:
    """Return the adapter class for a model of your framework, or None.

    The class derives from :class:`pytest_bncheck.adapters.base.Adapter`. The first result wins;
    other packages are asked before Keras and PyTorch. In a ``conftest.py``::

        import pytest

        @pytest.hookimpl(optionalhook=True)  # the run may be without the plugin
        def pytest_bncheck_adapters(model):
            if isinstance(model, MyModel):
                from my_framework.bncheck import MyAdapter

                return MyAdapter
            return None

    Outside pytest, adapters come from functions of the same kind in the entry-point group
    ``pytest_bncheck_adapters``.
    """
