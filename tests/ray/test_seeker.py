"""What waits for room is shown to Ray's autoscaler for as long as it waits. Ray itself is faked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from remora.engine.base import Missing
from remora.engine.ray import seeker
from remora.engine.ray.seeker import RoomSeeker


class FakeGroups:
    """Placement groups: the first finds room, because what is to lie there is on its way."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.made = asyncio.Event()

    def make(self, bundles: list[dict[str, float]], **_: Any) -> int:
        number = len(self.states)
        self.states[number] = "PENDING" if self.states else "CREATED"
        if number == 1:
            self.made.set()
        return number

    def table(self, group: int) -> dict[str, str]:
        return {"state": self.states[group]}

    def remove(self, group: int) -> None:
        self.states[group] = "REMOVED"


async def test_what_ray_had_room_for_too_early_is_shown_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = FakeGroups()
    monkeypatch.setattr(seeker, "placement_group", groups.make)
    monkeypatch.setattr(seeker, "placement_group_table", groups.table)
    monkeypatch.setattr(seeker, "remove_placement_group", groups.remove)
    monkeypatch.setattr(seeker, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(seeker, "_FIRST_PAUSE_S", 0.01)
    tasks = []

    async def ask(call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    def spawn(work: Coroutine[Any, Any, None], _: str) -> None:
        tasks.append(asyncio.create_task(work))

    seeks = RoomSeeker("n", ask=ask, spawn=spawn)
    seeks.seek([Missing(({"token": 1.0},), ({},), "PACK")])
    await asyncio.wait_for(groups.made.wait(), 5)
    assert groups.states == {0: "REMOVED", 1: "PENDING"}
    seeks.seek([])
    await asyncio.wait_for(tasks[0], 5)
    assert groups.states == {0: "REMOVED", 1: "REMOVED"}
