"""A controller that runs, for the tests that need no more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.unit.control.rig import Rig, rig


@pytest.fixture
async def r() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made
