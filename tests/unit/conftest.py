"""Which loop a test runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from remora.testing.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual time": VirtualTimeLoop}
    return {"asyncio": asyncio.new_event_loop}
