"""The controller behind its real socket, with fake processes below it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from tests.unit.control.rig import app, deployment

from remora.control.admin import Admin
from remora.control.client import ControlClient
from remora.control.controller import Controller
from remora.core.snapshot import Snapshot, SnapshotDiff, patch
from remora.errors import EngineError, InstanceError, RouteTakenError
from remora.home import Home
from remora.testing import FakeEngine, FakeReplicas
from remora.transport.channel import connect
from remora.transport.control import call_control, serve_control, stream_control
from remora.types import DeploymentID
from remora.wire.control import Ack, InstanceStatus, Subscription


class Instance:
    """A controller on the socket that an engine would hold for it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.engine = FakeEngine()
        self.replicas = FakeReplicas(self.engine)
        home.make()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(home.controller_socket))
        self.sock.listen()
        self._server: asyncio.Server | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        controller = Controller(self.engine, connect=self.replicas.connect)
        admin = Admin(controller, home=str(self.home.root))
        self._server = await serve_control(self.sock.dup(), admin.handlers)
        self._running = asyncio.create_task(controller.run())

    async def kill(self) -> None:
        """End the controller; its socket goes on listening, as the engine holds it."""
        assert self._server is not None
        assert self._running is not None
        self._server.close()
        close_clients = getattr(self._server, "close_clients", None)
        if close_clients is not None:
            close_clients()
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running


@pytest.fixture
async def instance(remora_home: Path) -> AsyncIterator[Instance]:
    made = Instance(Home.locate())
    await made.start()
    yield made
    await made.kill()
    made.sock.close()


async def running(client: ControlClient, name: str = "default") -> InstanceStatus:
    async with aclosing(client.watch()) as statuses:
        async for status in statuses:
            found = status.applications.get(name)
            if found is not None and found.status == "RUNNING":
                return status
    raise AssertionError("the watch ended")


async def test_a_deploy_is_accepted_watched_and_deleted(instance: Instance) -> None:
    async with ControlClient(instance.home) as client:
        await client.deploy([app("default", deployment(num_replicas=2, code=b"x" * 2_000_000))])
        status = await running(client)
        assert status.home == str(instance.home.root)
        assert [proxy.name for proxy in status.proxies] == ["proxy-1"]
        assert status.supervisor_pid == 1
        with pytest.raises(RouteTakenError, match="belongs to application 'default'"):
            await client.deploy([app("other")])
        await client.delete(["default", "unknown"])
        async with aclosing(client.watch()) as statuses:
            async for each in statuses:
                if not each.applications:
                    break
        assert instance.engine.processes == {}


async def test_a_router_follows_over_the_wire(instance: Instance) -> None:
    channel = await connect(f"unix:{instance.home.controller_socket}", name="router")
    held = Snapshot()
    async with ControlClient(instance.home) as client:
        await client.deploy([app()])
        changes = stream_control(channel, "subscribe", Subscription("r", 1), SnapshotDiff)
        async with aclosing(changes) as stream:  # type: ignore[type-var]
            async for change in stream:
                held = patch(held, change)
                await call_control(channel, "ack", Ack("r", change.version))
                route = held.deployments.get(DeploymentID("Model"))
                if route is not None and route.replicas:
                    break
    assert held.apps["default"].route_prefix == "/"
    channel.close()


async def test_a_watch_goes_on_after_a_controller_restart(instance: Instance) -> None:
    async with ControlClient(instance.home) as client:
        await client.deploy([app()])
        await running(client)
        async with aclosing(client.watch()) as statuses:
            assert "default" in (await anext(statuses)).applications
            client.close()
            await instance.kill()
            await instance.start()
            await client.deploy([app("second", route_prefix="/second")])
            async for status in statuses:
                if "second" in status.applications:
                    break
        pids = {replica.pid for replica in instance.replicas.serving}
        assert 10001 in pids


async def test_the_story_of_a_replica_is_told_while_it_lives_and_when_it_is_gone(
    instance: Instance,
) -> None:
    async with ControlClient(instance.home) as client:
        await client.deploy([app()])
        status = await running(client)
        (replica,) = status.applications["default"].deployments["Model"].replicas
        told = await client.story(replica.replica_id)
        assert f"{replica.replica_id} is RUNNING" in told
        assert "STARTING -> RUNNING: ready [event" in told
        assert "ProcessStarted(event_id=" in told
        instance.engine.crash(replica.replica_id)
        async with aclosing(client.watch()) as statuses:
            async for status in statuses:
                if status.applications["default"].deployments["Model"].replicas != (replica,):
                    break
        assert "RUNNING -> STOPPED: process gone" in await client.story(replica.replica_id)
        with pytest.raises(EngineError, match="Nothing is known of replica default/Model#none"):
            await client.story("default/Model#none")


async def test_without_an_instance_it_says_how_to_start_one(remora_home: Path) -> None:
    async with ControlClient(Home.locate()) as client:
        with pytest.raises(InstanceError, match="remora start"):
            await client.status()


async def test_a_controller_that_never_comes_back_is_waited_for_a_bounded_time(
    remora_home: Path,
) -> None:
    home = Home.locate()
    home.make()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home.controller_socket))
    listener.listen()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, sock=listener)
    async with ControlClient(home, reconnect_s=0.2) as client:
        with pytest.raises(InstanceError, match="No instance answers"):
            await client.status()
        with pytest.raises(InstanceError, match="No instance answers"):
            await anext(client.watch())
    server.close()
