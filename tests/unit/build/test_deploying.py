"""How long `delete` waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from remora.build import deploying
from remora.instance import Instance


class Busy:
    """An instance whose applications never finish what they do."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, names: list[str]) -> None:
        self.deleted += names

    async def wait_deleted(self, _names: list[str]) -> None:
        await asyncio.Event().wait()


def test_who_deletes_waits_a_minute_and_is_told_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here(instance: Instance, work: Callable[[Instance], Awaitable[None]]) -> None:
        asyncio.run(asyncio.wait_for(work(instance), 20.0))

    assert deploying.DELETE_LIMIT_S == 60.0
    monkeypatch.setattr(deploying, "DELETE_LIMIT_S", 0.0)
    monkeypatch.setattr(deploying, "wait_for", here)
    busy = Busy()
    with pytest.raises(TimeoutError, match=r"a, b are not gone after 0s; they finish"):
        deploying.delete_all(cast(Instance, busy), ["a", "b"])
    assert busy.deleted == ["a", "b"]
