"""The routing side of one process: follows the controller's snapshot, owns the routers.

One client belongs to one event loop; `router/process.py` keeps those of a process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from remora.core.request.route_table import RouteTable
from remora.core.snapshot import AppRoute, DeploymentRoute, Snapshot, SnapshotDiff, patch
from remora.errors import ConnectionLostError, RemoraError
from remora.home import Home
from remora.observe.background import run_beside
from remora.observe.routing_counts import RoutingRow, routing_families
from remora.observe.tracing import active
from remora.router.callees import CalleeReporter
from remora.router.demand_report import DemandReporter
from remora.router.metrics import ProcessMetrics
from remora.router.reconnect import waits
from remora.router.router import Router
from remora.router.shares import ShareKeeper
from remora.router.unknown import why_unknown
from remora.transport.channel import Channel, connect
from remora.transport.control import call_control, stream_control
from remora.transport.membership import join_by_folder
from remora.transport.way_back import see_to_socket
from remora.types import DeploymentID, Seconds, is_replica
from remora.wire.control import Ack, SnapshotVersion, Subscription
from remora.wire.metrics import Family

_log = logging.getLogger("remora.router")
#: A controller that is there tells its version in a millisecond.
_CATCH_UP_LIMIT_S: Seconds = 5.0
_serial = itertools.count()


def make_router(deployment: DeploymentID, *given: Any) -> Router:
    """Make the router of a deployment, as it is where requests are traced or not.

    Args:
        deployment: whose replicas.
        given: as `Router`.
    """
    tracing = active()
    if tracing is None:
        return Router(deployment, *given)
    # Only here: where nothing is traced, nobody needs it.
    from remora.router.traced import TracedRouter

    return TracedRouter(tracing, deployment, *given)


class RoutingClient:
    """Routers of one process and loop, kept up to date by the controller.

    Losing the controller loses no request: the last snapshot stays in force until a new
    controller sends one.
    """

    def __init__(self, home: Home, name: str) -> None:
        """Make a client on the running loop; `start` connects it.

        Args:
            home: the instance.
            name: who we are, for messages: `proxy-1`, `default/Model#ab12`, `script 4711`.
        """
        self.loop = asyncio.get_running_loop()
        self.home = home
        self.name = name
        self.snapshot = Snapshot()
        self.routes: RouteTable[AppRoute] = RouteTable({})
        self.on_change: list[Callable[[Snapshot], None]] = []
        self._subscriber = f"{name}/{os.getpid()}/{next(_serial)}"
        #: Of the deployments in the snapshot.
        self._routers: dict[DeploymentID, Router] = {}
        #: Of those that no snapshot has named yet, or none names any more: kept for as long as a
        #: handle holds them or something is under way, because the deployment may come (back).
        self._others: weakref.WeakValueDictionary[DeploymentID, Router] = (
            weakref.WeakValueDictionary()
        )
        self._subscription = Subscription(self._subscriber, os.getpid())
        self._shares = ShareKeeper(self._subscriber, self._all_routers)
        self.metrics = ProcessMetrics(self._subscriber, os.getpid())
        self.metrics.sources.append(self._families)
        self._demand = DemandReporter(self._subscription, self._all_routers)
        #: People want to see which deployments call which; who else calls is not asked.
        self._callees: CalleeReporter | None = None
        if is_replica(name):
            self._callees = CalleeReporter(
                name, lambda: (each.deployment for each in self._all_routers())
            )
        self._rng = random.Random()
        self._task: asyncio.Task[None] | None = None
        self._synced = asyncio.Event()
        self._channel: Channel | None = None
        #: What this process has changed itself, while the loop of this client may have stood
        #: still, has come in here.
        self._caught_up = asyncio.Event()
        self._caught_up.set()
        self._catching_up: asyncio.Task[None] | None = None
        self._applied = asyncio.Event()

    def start(self) -> None:
        """Begin to follow the controller."""
        if self._task is None:
            self._task = self.loop.create_task(self._follow())

    async def wait_synced(self, timeout_s: Seconds | None = None) -> None:
        """Wait for the first snapshot.

        Raises:
            TimeoutError: none came in time.
        """
        async with asyncio.timeout(timeout_s):
            await self._synced.wait()

    @property
    def is_behind(self) -> bool:
        """Calls should wait for news that are on their way."""
        return not self._caught_up.is_set()

    async def wait_caught_up(self) -> None:
        """Wait until this client knows what the controller knew at the last `fall_behind`."""
        await self._caught_up.wait()

    def fall_behind(self) -> None:
        """This process has deployed or deleted something: catch up before the next call."""
        self._caught_up.clear()
        if self._catching_up is not None:
            self._catching_up.cancel()
        self._catching_up = self.loop.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            async with asyncio.timeout(_CATCH_UP_LIMIT_S):
                await self._synced.wait()
                if self._channel is None:
                    # Cut off: the first thing that a controller says is everything.
                    self._applied.clear()
                    await self._applied.wait()
                    return
                answer = await call_control(
                    self._channel, "snapshot_version", None, SnapshotVersion, unpickle=True
                )
                while self.snapshot.version < answer.version:
                    self._applied.clear()
                    await self._applied.wait()
        except (RemoraError, TimeoutError) as error:
            # The last snapshot is what there is, as always without a controller.
            _log.debug("%s could not catch up: %r", self._subscriber, error)
        finally:
            if self._catching_up is asyncio.current_task():
                self._caught_up.set()

    def router(self, deployment: DeploymentID) -> Router:
        """The router of a deployment; calls wait in it until a snapshot names replicas."""
        router = self._routers.get(deployment) or self._others.get(deployment)
        if router is None:
            router = make_router(
                deployment, self.name, self._rng, lambda: why_unknown(deployment, self.snapshot)
            )
            route = self.snapshot.deployments.get(deployment)
            if route is None:
                self._others[deployment] = router
            else:
                self._routers[deployment] = router
                router.update(route)
            self._shares.add(router)
            self._demand.add(router)
            if self._callees is not None:
                self._callees.on_new()
        return router

    def _all_routers(self) -> tuple[Router, ...]:
        return (*self._routers.values(), *self._others.values())

    def _families(self) -> list[Family]:
        return routing_families(
            RoutingRow(
                each.deployment, each.num_requests, each.num_waiting + each.num_pinned, each.counts
            )
            for each in self._all_routers()
        )

    async def close(self) -> None:
        """Stop following and drop all connections."""
        for task in (self._task, self._catching_up):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._task = self._catching_up = None
        self._caught_up.set()
        for router in self._all_routers():
            router.disconnect()
        self._routers.clear()
        self._others.clear()

    async def _follow(self) -> None:
        wait_s = waits()
        address = f"unix:{self.home.controller_socket}"
        while True:
            channel: Channel | None = None
            beside: list[asyncio.Task[None]] = []
            is_lost = False
            try:
                channel = self._channel = await connect(address, name=self._subscriber)
                beside = [
                    run_beside(self.loop, self._shares.follow(channel), "the leases of queues"),
                    run_beside(self.loop, self._demand.follow(channel), "the reports of demand"),
                    run_beside(self.loop, self.metrics.follow(channel), "the answers of metrics"),
                ]
                if self._callees is not None:
                    beside.append(
                        run_beside(self.loop, self._callees.follow(channel), "who calls whom")
                    )
                is_first = True
                async for change in stream_control(
                    channel, "subscribe", self._subscription, SnapshotDiff, unpickle=True
                ):
                    if is_first:
                        # This may be another instance in the same folder, with another token.
                        join_by_folder(self.home)
                        is_first = False
                    wait_s = waits()
                    self._apply(change)
                    await self._acknowledge(channel, change.version)
            except ConnectionLostError:
                is_lost = True
            except RemoraError as error:
                _log.warning("The controller refused %s: %s", self._subscriber, error)
            except Exception:  # noqa: BLE001
                # Border: a client that stops following is wrong for good, and nobody sees it.
                _log.exception("%s could not follow the controller; trying again", self._subscriber)
            finally:
                for task in beside:
                    task.cancel()
                self._channel = None
                if channel is not None:
                    channel.close()
            if is_lost:
                await see_to_socket(self.home)
            await asyncio.sleep(next(wait_s))

    async def _acknowledge(self, channel: Channel, version: int) -> None:
        await call_control(channel, "ack", Ack(self._subscriber, version), unpickle=True)

    def _apply(self, change: SnapshotDiff) -> None:
        old = self.snapshot
        new = self.snapshot = patch(old, change)
        if new.apps != old.apps:
            self.routes = RouteTable(
                {app.route_prefix: app for app in new.apps.values() if app.route_prefix}
            )
        for deployment, router in (*self._routers.items(), *self._others.items()):
            with self._surviving(f"the router of {deployment}"):
                self._route(router, old.deployments.get(deployment))
        self._synced.set()
        self._applied.set()
        for callback in tuple(self.on_change):
            with self._surviving("a callback"):
                callback(new)

    def _route(self, router: Router, before: DeploymentRoute | None) -> None:
        """Tell a router what the snapshot says of its deployment, if that is new to it."""
        deployment = router.deployment
        route = self.snapshot.deployments.get(deployment)
        if route is not None:
            self._others.pop(deployment, None)
            self._routers[deployment] = router
            if route != before or not router.is_known:
                router.update(route)
        elif self._routers.pop(deployment, None) is not None:
            self._others[deployment] = router
            router.close("it was deleted; `remora status` shows what runs")

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Go on with the others when one of many fails: a bug in one must not stop them all."""
        try:
            yield
        except Exception:  # noqa: BLE001 - border: callbacks of other modules
            _log.exception("Snapshot %d: %s failed", self.snapshot.version, what)
