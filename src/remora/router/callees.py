"""Tells the controller which deployments a replica calls, so that people see who calls whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from remora.errors import ConnectionLostError, RemoraError
from remora.transport.channel import Channel
from remora.transport.control import call_control
from remora.types import DeploymentID
from remora.wire.control import Callees

_log = logging.getLogger("remora.router")


class CalleeReporter:
    """Reports for one replica; each deployment once for each connection."""

    def __init__(self, replica_id: str, called: Callable[[], Iterable[DeploymentID]]) -> None:
        """Make a reporter.

        Args:
            replica_id: who calls.
            called: all that it calls now.
        """
        self._replica_id = replica_id
        self._called = called
        self._changed = asyncio.Event()

    def on_new(self) -> None:
        """It calls one that it did not call before."""
        self._changed.set()

    async def follow(self, channel: Channel) -> None:
        """Report until the connection ends."""
        told: frozenset[DeploymentID] = frozenset()
        try:
            while True:
                self._changed.clear()
                called = frozenset(self._called())
                if called - told:
                    report = Callees(self._replica_id, tuple(sorted(called - told)))
                    await call_control(channel, "callees", report)
                    told |= called
                await self._changed.wait()
        except ConnectionLostError:
            pass
        except RemoraError as error:
            _log.debug("The controller does not hear what %s calls: %s", self._replica_id, error)
