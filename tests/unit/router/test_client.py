"""What a routing client does with snapshots: whom it tells, whom it lets go, what it survives."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from remora.core.snapshot import DeploymentRoute, Snapshot, diff
from remora.home import Home
from remora.router.client import RoutingClient
from remora.transport import way_back
from remora.transport.control import serve_control
from remora.transport.membership import Membership, join, mine
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.control import Ack

ONE, TWO = DeploymentID("One"), DeploymentID("Two")


def route(limit: int = 1) -> DeploymentRoute:
    return DeploymentRoute((), max_ongoing_requests=limit)


class FakeController:
    """Sends the differences that a test hands it, and collects acknowledgements."""

    def __init__(self) -> None:
        self.held = Snapshot()
        self.changes: asyncio.Queue[bytes] = asyncio.Queue()
        self.acks: asyncio.Queue[int] = asyncio.Queue()
        self.subscribed: asyncio.Queue[None] = asyncio.Queue()

    async def subscribe(self, _body: bytes) -> AsyncIterator[bytes]:
        self.subscribed.put_nowait(None)
        while True:
            yield await self.changes.get()

    async def ack(self, body: bytes) -> bytes:
        self.acks.put_nowait(unpack(body, Ack).version)
        return b""

    async def publish(self, **deployments: DeploymentRoute) -> None:
        """Send a snapshot and wait until the client has it."""
        routes = {DeploymentID(name): found for name, found in deployments.items()}
        new = Snapshot(self.held.version + 1, {}, routes)
        change, self.held = diff(self.held, new), new
        self.changes.put_nowait(pack(change))
        async with asyncio.timeout(5):
            while await self.acks.get() != new.version:
                pass


@asynccontextmanager
async def following(home: Home) -> AsyncIterator[tuple[FakeController, RoutingClient]]:
    controller = FakeController()
    home.make()
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(home.controller_socket))
    sock.listen()
    handlers: dict[str, Any] = {"subscribe": controller.subscribe, "ack": controller.ack}
    server = await serve_control(sock, handlers)
    client = RoutingClient(home, "tests")
    client.start()
    try:
        yield controller, client
    finally:
        await client.close()
        server.close()


def fail(*_: object) -> None:
    raise LookupError("a bug")


async def test_a_bug_in_one_callback_or_router_stops_nobody_else(
    remora_home: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    async with following(Home.locate()) as (controller, client):
        client.on_change += [fail, lambda snapshot: seen.append(snapshot.version)]
        bad, good = client.router(ONE), client.router(TWO)
        monkeypatch.setattr(bad, "update", fail)
        with caplog.at_level(logging.ERROR, "remora.router"):
            await controller.publish(One=route(1), Two=route(1))
            await controller.publish(One=route(2), Two=route(2))
        assert seen == [1, 2]
        assert good.max_ongoing == 2
        assert "the router of" in caplog.text
        assert "a bug" in caplog.text


async def test_a_bug_in_following_is_logged_and_the_controller_asked_again(
    remora_home: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("remora.router.reconnect.FIRST_S", 0.001)
    async with following(Home.locate()) as (controller, client):
        with caplog.at_level(logging.ERROR, "remora.router"):
            with monkeypatch.context() as broken:
                broken.setattr(client, "_apply", fail)
                controller.changes.put_nowait(pack(diff(None, Snapshot())))
                for _ in range(2):
                    await asyncio.wait_for(controller.subscribed.get(), 5)
            await controller.publish(One=route(3))
        assert client.router(ONE).max_ongoing == 3
        assert "trying again" in caplog.text


async def test_who_outlives_an_instance_presents_the_token_of_the_next_one(
    remora_home: object,
) -> None:
    home = Home.locate()
    home.make()
    try:
        join(Membership("a-node", "of the one before"))
        Membership("this-node", "of this one").write(home)
        async with following(home) as (controller, _):
            await controller.publish(One=route())
            assert mine() == Membership("this-node", "of this one")
    finally:
        join(Membership())


async def test_the_router_of_a_deleted_deployment_goes_with_its_last_user(
    remora_home: object,
) -> None:
    async with following(Home.locate()) as (controller, client):
        await controller.publish(One=route())
        router = weakref.ref(client.router(ONE))
        gc.collect()
        assert router() is not None
        await controller.publish()
        gc.collect()
        assert router() is None


async def test_a_router_that_somebody_holds_serves_the_deployment_when_it_is_back(
    remora_home: object,
) -> None:
    async with following(Home.locate()) as (controller, client):
        held = client.router(ONE)
        await controller.publish(One=route(2))
        await controller.publish()
        assert not held.is_known
        assert client.router(ONE) is held
        await controller.publish(One=route(5))
        assert held.max_ongoing == 5
        assert client.router(ONE) is held


async def test_a_socket_that_cannot_be_brought_back_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.router.reconnect.FIRST_S", 0.001)
    asked = threading.Semaphore(0)
    monkeypatch.setattr(way_back, "_restore", lambda _: asked.release())
    client = RoutingClient(Home(tmp_path), "tests")
    client.start()
    for _ in range(3):
        assert await asyncio.to_thread(asked.acquire, timeout=10.0)
    await client.close()
