"""Follows the load of one replica, for as long as it runs.

A connection that is lost is made again: the replica may be well, and what it said last is
believed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from remora.control.replica_control import Connect
from remora.errors import ConnectionLostError, RemoraError
from remora.types import Seconds
from remora.wire.scaling import LoadWanted, ReplicaLoad

_log = logging.getLogger("remora.controller")
#: Between two tries.
_AGAIN_S: Seconds = 0.5
#: More, after a replica has answered that it cannot tell.
_REFUSED_S: Seconds = 5.0


class LoadWatch:
    """One replica's reports."""

    def __init__(
        self,
        connect: Connect,
        address: str,
        wanted: LoadWanted,
        on_load: Callable[[ReplicaLoad], None],
    ) -> None:
        """Begin to follow.

        Args:
            connect: opens a link to a replica.
            address: of the replica.
            wanted: how often it is to report.
            on_load: takes every report.
        """
        self._connect = connect
        self._address = address
        self._wanted = wanted
        self._on_load = on_load
        self._said = False
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def want(self, wanted: LoadWanted) -> None:
        """Have it report at this pace from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._task.cancel()
            self._task = asyncio.get_running_loop().create_task(self._follow())

    def close(self) -> None:
        """Follow it no more."""
        self._task.cancel()

    async def _follow(self) -> None:
        while True:
            try:
                await self._follow_once()
            except ConnectionLostError:
                pass
            except RemoraError as error:
                # Its next answer may be another one; given up, it would count as silent for ever.
                if not self._said:
                    self._said = True
                    text = "The replica at %s reports no load, and is asked again; said once: %s"
                    _log.warning(text, self._address, error)
                await asyncio.sleep(_REFUSED_S)
            except Exception:  # noqa: BLE001
                # The border of a task that nobody waits for: unseen, the replica would count as
                # silent for ever, and nothing would be scaled down.
                _log.exception("A report of the replica at %s was lost to a bug", self._address)
            await asyncio.sleep(_AGAIN_S)

    async def _follow_once(self) -> None:
        link = await self._connect(self._address)
        try:
            async with aclosing(link.stream("load", self._wanted, ReplicaLoad)) as loads:
                async for load in loads:
                    self._on_load(load)
        finally:
            link.close()
