"""The routing side of one process: follows the controller's snapshot, owns the routers.

One client belongs to one event loop. A process may have several: the loop of its caller (the
fast path, nothing crosses threads) and a background thread's loop for callers without one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from remora.core.route_table import RouteTable
from remora.core.snapshot import AppRoute, Snapshot, SnapshotDiff, patch
from remora.errors import ConnectionLostError, InstanceError, RemoraError
from remora.home import Home
from remora.router.router import Router
from remora.transport.channel import Channel, connect
from remora.transport.control import call_control, stream_control
from remora.types import DeploymentID, Seconds
from remora.wire.control import Ack, Subscription

_log = logging.getLogger("remora.router")
_FIRST_RECONNECT_S: Seconds = 0.02
_LAST_RECONNECT_S: Seconds = 1.0
_serial = itertools.count()


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
        self.is_synced = False
        self.on_change: list[Callable[[Snapshot], None]] = []
        self._subscriber = f"{name}/{os.getpid()}/{next(_serial)}"
        self._routers: dict[DeploymentID, Router] = {}
        self._rng = random.Random()
        self._task: asyncio.Task[None] | None = None
        self._synced = asyncio.Event()

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

    def router(self, deployment: DeploymentID) -> Router:
        """The router of a deployment; calls wait in it until a snapshot names replicas."""
        router = self._routers.get(deployment)
        if router is None:
            router = self._routers[deployment] = Router(deployment, self.name, self._rng)
            route = self.snapshot.deployments.get(deployment)
            if route is not None:
                router.update(route)
        return router

    async def close(self) -> None:
        """Stop following and drop all connections."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for router in self._routers.values():
            router.disconnect()
        self._routers.clear()

    async def _follow(self) -> None:
        wait_s = _FIRST_RECONNECT_S
        address = f"unix:{self.home.controller_socket}"
        while True:
            channel: Channel | None = None
            try:
                channel = await connect(address, name=self._subscriber)
                subscription = Subscription(self._subscriber, os.getpid())
                async for change in stream_control(
                    channel, "subscribe", subscription, SnapshotDiff, unpickle=True
                ):
                    wait_s = _FIRST_RECONNECT_S
                    self._apply(change)
                    await self._acknowledge(channel, change.version)
            except ConnectionLostError:
                pass
            except RemoraError as error:
                _log.warning("The controller refused %s: %s", self._subscriber, error)
            finally:
                if channel is not None:
                    channel.close()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_RECONNECT_S)

    async def _acknowledge(self, channel: Channel, version: int) -> None:
        await call_control(channel, "ack", Ack(self._subscriber, version), unpickle=True)

    def _apply(self, change: SnapshotDiff) -> None:
        old = self.snapshot
        new = self.snapshot = patch(old, change)
        if new.apps != old.apps:
            self.routes = RouteTable(
                {app.route_prefix: app for app in new.apps.values() if app.route_prefix}
            )
        for deployment, router in self._routers.items():
            route = new.deployments.get(deployment)
            if route is None:
                if router.is_known:
                    router.close("it was deleted")
            elif route != old.deployments.get(deployment) or not router.is_known:
                router.update(route)
        self.is_synced = True
        self._synced.set()
        for callback in self.on_change:
            callback(new)


class _ProcessRouting:
    """The clients of this process: one for each loop that calls, one in the background."""

    def __init__(self) -> None:
        self.home: Home | None = None
        self.name = ""
        self.lock = threading.Lock()
        self.clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, RoutingClient] = (
            weakref.WeakKeyDictionary()
        )
        self.endings: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, AsyncGenerator[None, None]
        ] = weakref.WeakKeyDictionary()
        self.background: RoutingClient | None = None
        #: The loop that a replica's process runs anyway; None: there is none.
        self.own_loop: asyncio.AbstractEventLoop | None = None
        self.own_thread = 0


_process = _ProcessRouting()


def use_instance(home: Home, name: str) -> None:
    """Say which instance this process calls, before its first call."""
    _process.home = home
    _process.name = name


def use_own_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Let threads without a loop call over this one, which runs in the calling thread."""
    _process.own_loop = loop
    _process.own_thread = threading.get_ident()


def instance_home() -> Home | None:
    """The instance that this process calls; None: none yet."""
    return _process.home


def adopt_client(client: RoutingClient) -> None:
    """Use this client for calls from its loop (a proxy or replica made its own)."""
    _process.clients[client.loop] = client


def routing_client(loop: asyncio.AbstractEventLoop) -> RoutingClient:
    """The client of a loop; must be called on that loop.

    Raises:
        InstanceError: this process is in no instance.
    """
    client = _process.clients.get(loop)
    if client is None:
        client = RoutingClient(_require_home(), _process.name)
        client.start()
        _process.clients[loop] = client
        loop.create_task(_close_with_loop(loop, client))
    return client


def background_client() -> RoutingClient:
    """The client of a thread of its own, for callers without a loop.

    Raises:
        InstanceError: this process is in no instance.
    """
    with _process.lock:
        loop = _process.own_loop
        if loop is not None and threading.get_ident() != _process.own_thread:
            return asyncio.run_coroutine_threadsafe(_find(loop), loop).result()
        # On the loop itself the caller is going to block: only another thread can serve it.
        if _process.background is None:
            home = _require_home()
            ready = threading.Event()
            threading.Thread(
                target=_run_background, args=(home, ready), name="remora-routing", daemon=True
            ).start()
            ready.wait()
        client = _process.background
        assert client is not None
        return client


def forget_instance() -> None:
    """Drop the background client and the instance; the next call needs a new one."""
    with _process.lock:
        client, _process.background = _process.background, None
        _process.home = None
        for loop, other in list(_process.clients.items()):
            if not loop.is_closed():
                with suppress(RuntimeError):
                    asyncio.run_coroutine_threadsafe(other.close(), loop)
        _process.clients.clear()
    if client is not None:
        client.loop.call_soon_threadsafe(client.loop.stop)


async def _find(loop: asyncio.AbstractEventLoop) -> RoutingClient:
    return routing_client(loop)


def _require_home() -> Home:
    if _process.home is None:
        raise InstanceError(
            "This process is in no Remora instance: call remora.run(app) or remora.start() first"
        )
    return _process.home


def _run_background(home: Home, ready: threading.Event) -> None:
    import uvloop

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)

    async def begin() -> RoutingClient:
        client = RoutingClient(home, _process.name)
        client.start()
        return client

    client = loop.run_until_complete(begin())
    _process.background = client
    _process.clients[loop] = client
    ready.set()
    try:
        loop.run_forever()
        loop.run_until_complete(client.close())
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


async def _close_with_loop(loop: asyncio.AbstractEventLoop, client: RoutingClient) -> None:
    """Arrange that a caller's loop, when it ends, closes our connections on it.

    A loop shuts its asynchronous generators down before it closes (`asyncio.run` does), which
    is the only hook that a library has.
    """

    async def ending() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await client.close()

    generator = ending()
    await anext(generator)
    _process.endings[loop] = generator
