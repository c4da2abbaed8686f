"""Tells the controller how many requests wait in this process, for deployments that are scaled.

The controller says for which deployments, so a process that calls none of them reports nothing.
What comes first in a queue wakes the reporter; while something waits it looks a few times between
two reports, and reports the mean. Nothing of it is touched by a call that finds a replica at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from remora.errors import ConnectionLostError, RemoraError
from remora.observe.background import run_beside
from remora.transport.channel import Channel
from remora.transport.control import call_control, stream_control
from remora.types import DeploymentID, Seconds
from remora.wire.control import Subscription
from remora.wire.scaling import DemandReport, DemandWanted

if TYPE_CHECKING:
    from remora.router.router import Router

_log = logging.getLogger("remora.router")
#: Between two looks at queues in which something waits.
_LOOK_EVERY_S: Seconds = 0.05
#: A mean that differs by less is the same.
_SAME = 0.05


class DemandReporter:
    """Reports for the routers of one routing client."""

    def __init__(self, subscription: Subscription, routers: Callable[[], Iterable[Router]]) -> None:
        """Make a reporter.

        Args:
            subscription: who reports.
            routers: all that there are now.
        """
        self._subscription = subscription
        self._routers = routers
        self._wanted: dict[DeploymentID, Seconds] = {}
        self._stirred = asyncio.Event()
        #: What the controller was told last, where it was not 0.
        self._told: dict[DeploymentID, float] = {}

    def add(self, router: Router) -> None:
        """A router that is new."""
        router.backlog.on_first = self._stirred.set

    async def follow(self, channel: Channel) -> None:
        """Report what the controller wants to know, until the connection ends."""
        self._wanted = {}
        self._told = {}
        loop = asyncio.get_running_loop()
        reporting = run_beside(loop, self._report(channel), "the reports of demand")
        try:
            async for message in stream_control(
                channel, "demand", self._subscription, DemandWanted
            ):
                self._wanted = message.deployments
                self._told = {k: v for k, v in self._told.items() if k in self._wanted}
                self._stirred.set()
        except ConnectionLostError:
            pass
        except RemoraError as error:
            _log.warning(
                "The controller takes no reports of %s: %s", self._subscription.subscriber, error
            )
        finally:
            reporting.cancel()

    async def _report(self, channel: Channel) -> None:
        try:
            while True:
                await self._stirred.wait()
                self._stirred.clear()
                await self._report_while_waiting(channel)
        except (ConnectionLostError, RemoraError):
            pass  # Whoever reads the stream hears of it.

    async def _report_while_waiting(self, channel: Channel) -> None:
        # Where no replica is, nothing else tells of the demand: the first one is said at once.
        await self._tell(channel, self._cold())
        while self._wanted and (self._told or any(self._waiting().values())):
            await self._tell(channel, await self._means())

    async def _means(self) -> dict[DeploymentID, float]:
        looks = max(1, round(min(self._wanted.values()) / _LOOK_EVERY_S))
        sums: dict[DeploymentID, float] = {}
        for _ in range(looks):
            await asyncio.sleep(_LOOK_EVERY_S)
            for deployment, num in self._waiting().items():
                sums[deployment] = sums.get(deployment, 0.0) + num
        return {deployment: total / looks for deployment, total in sums.items()}

    def _waiting(self) -> dict[DeploymentID, float]:
        # Calls that wait for one certain replica are no demand: another one cannot take them.
        return {
            router.deployment: float(router.num_waiting)
            for router in self._routers()
            if router.deployment in self._wanted
        }

    def _cold(self) -> dict[DeploymentID, float]:
        return {
            router.deployment: float(router.num_waiting)
            for router in self._routers()
            if router.deployment in self._wanted and not router.num_replicas and router.num_waiting
        }

    async def _tell(self, channel: Channel, found: dict[DeploymentID, float]) -> None:
        changed = {
            deployment: num
            for deployment, num in found.items()
            if abs(num - self._told.get(deployment, 0.0)) > _SAME
            or (num == 0) != (deployment not in self._told)
        }
        if not changed:
            return
        for deployment, num in changed.items():
            if num:
                self._told[deployment] = num
            else:
                self._told.pop(deployment, None)
        report = DemandReport(self._subscription.subscriber, changed)
        await call_control(channel, "report", report)
