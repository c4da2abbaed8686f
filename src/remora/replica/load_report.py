"""Tells the controller how many requests this replica works on, and what its code says of itself.

Nothing of it is on the way of a request: while requests are under way the number is looked at
twenty times a second, and a replica without any sleeps until the first one.

What `record_autoscaling_stats` returns that is no dict of numbers ends the recording, because it will
not be one the next time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from remora.errors import ConfigError
from remora.observe.background import run_beside
from remora.replica.recording import Recording
from remora.replica.user_code import UserCode
from remora.types import Seconds
from remora.wire.scaling import LoadWanted, ReplicaLoad

if TYPE_CHECKING:
    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")
_STATS = "record_autoscaling_stats"
#: A mean of five looks is worth a report.
_LOOK_EVERY_S: Seconds = 0.05
#: What the user's code may take to say what it has counted.
STATS_LIMIT_S: Seconds = 10.0
#: A mean that differs by less is the same.
_SAME = 0.05


class LoadReport:
    """Reports to one follower; there are two for a moment when a controller takes over."""

    def __init__(self, replica: Replica, wanted: LoadWanted) -> None:
        self._replica = replica
        self._wanted = wanted
        self._loop = replica.loop
        self._news: asyncio.Queue[ReplicaLoad] = asyncio.Queue(maxsize=8)
        self._busy = asyncio.Event()

    async def follow(self) -> AsyncGenerator[ReplicaLoad, None]:
        """Stream the load until the reader closes."""
        self._replica.tell_busy(self._busy.set, wanted=True)
        tasks = [run_beside(self._loop, self._watch_load(), "the reports of load")]
        code = self._replica.code
        if code is not None and code.kind_of_hook(_STATS) is not None:
            recording = run_beside(self._loop, self._record(code), f"the asking of {_STATS}")
            tasks.append(recording)
        try:
            while True:
                yield await self._news.get()
        finally:
            self._replica.tell_busy(self._busy.set, wanted=False)
            for task in tasks:
                task.cancel()

    async def _watch_load(self) -> None:
        replica, loop = self._replica, self._loop
        told = float(replica.ongoing)
        await self._news.put(ReplicaLoad(told))
        told_s = loop.time()
        while True:
            if replica.ongoing == 0 and told == 0:
                mean = await self._until_busy(told_s + self._wanted.interval_s - loop.time())
            else:
                mean = await self._mean()
            due = loop.time() - told_s >= self._wanted.interval_s
            if mean is not None and (due or abs(mean - told) > _SAME or (mean == 0) != (told == 0)):
                told, told_s = mean, loop.time()
                await self._news.put(ReplicaLoad(mean))

    async def _until_busy(self, limit_s: Seconds) -> float | None:
        """Wait for a first request; 0.0 when it is time to say that there is none."""
        self._busy.clear()
        try:
            async with asyncio.timeout(max(0.0, limit_s)):
                await self._busy.wait()
        except TimeoutError:
            return 0.0
        return None

    async def _mean(self) -> float:
        looks = max(1, round(self._wanted.report_s / _LOOK_EVERY_S))
        total = 0
        for _ in range(looks):
            await asyncio.sleep(_LOOK_EVERY_S)
            total += self._replica.ongoing
        return total / looks

    # --------------------------------------------------------------------------- what users say

    async def _record(self, code: UserCode) -> None:
        recording = Recording(code, _STATS, "the autoscaler keeps the last values")
        limit = f"{STATS_LIMIT_S:g} s"
        while True:
            try:
                recorded = await recording.ask(code.hook_result, STATS_LIMIT_S, limit)
                metrics = _numbers(recorded)
            except ConfigError as error:
                _log.error("%s: %s It is not called any more.", code.deployment, error)
                return
            except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
                recording.note_failure(error)
            else:
                recording.note_success()
                await self._news.put(ReplicaLoad(None, metrics))
            await asyncio.sleep(self._wanted.interval_s)


def _numbers(recorded: object) -> dict[str, float]:
    """Take what user code recorded.

    Raises:
        ConfigError: it is no dict of names and numbers.
    """
    allowed = "it must return a dict of names and numbers."
    if not isinstance(recorded, dict):
        raise ConfigError(_STATS, recorded, allowed)
    numbers: dict[str, Any] = {}
    for name, value in recorded.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not isinstance(name, str) or not is_number or not math.isfinite(value):
            raise ConfigError(f"{_STATS}[{name!r}]", value, allowed)
        numbers[name] = float(value)
    return numbers
