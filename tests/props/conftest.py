"""How properties are tested: on a busy machine, so no example has a time limit of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "props", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("props")

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A hundred examples take longer than a quarter of a second."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
