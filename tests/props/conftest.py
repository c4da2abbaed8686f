"""Tests of properties are slow ones."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A hundred examples take longer than a quarter of a second."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
