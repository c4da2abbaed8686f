"""Replicas as objects, routers fed by hand, a front door on port 0: all on one loop, real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import cloudpickle
import uvicorn
from uvicorn.server import ServerState

from remora.config import DeploymentConfig, HTTPOptions
from remora.context import set_replica_context
from remora.core.request.route_table import RouteTable
from remora.core.snapshot import AppRoute, DeploymentRoute, ReplicaRoute, Snapshot
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.proxy.connection import ClientConnection
from remora.proxy.front import Front
from remora.proxy.main import make_front
from remora.replica.replica import Replica
from remora.replica.surroundings import OwnProcess, Place, SharedProcess
from remora.router.call import StreamCall, UnaryCall
from remora.router.client import make_router
from remora.router.metrics import ProcessMetrics
from remora.router.router import Router
from remora.transport.listener import listen
from remora.transport.packing import pack_call
from remora.types import DeploymentID, ReplicaID, replica_id
from remora.wire.codec import pack
from remora.wire.control import ReplicaReconfigure, ReplicaSpec, Surroundings
from remora.wire.messages import CallKind, Envelope

if TYPE_CHECKING:
    from remora.proxy.grpc.server import GrpcServer

DEPLOYMENT = DeploymentID("App")


async def until(condition: Callable[[], object], limit_s: float = 5.0) -> None:
    """Turn the loop until `condition()` is true."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.001)


def envelope(method: str, kind: CallKind = CallKind.UNARY, **fields: Any) -> Envelope:
    return Envelope("request-1", "default", "App", method, kind, **fields)


def call(router: Router, method: str, *args: Any, **fields: Any) -> UnaryCall:
    return router.call(envelope(method, **fields), pack_call(args, {})[1])


def stream(router: Router, method: str, *args: Any, **fields: Any) -> StreamCall:
    return router.stream(envelope(method, CallKind.STREAM, **fields), pack_call(args, {})[1])


class TestedProcess(OwnProcess):
    """This process, arranged for a replica as its own would be, but with other things in it."""

    def on_constructed(self) -> None:
        """A collection of all that the tests have imported would take most of their time."""


class Node:
    """A replica with a listening socket, as an object on this loop."""

    def __init__(self, name: str, folder: Path, place: Place) -> None:
        self.replica = Replica(replica_id(DEPLOYMENT, name), place)
        self.path = str(folder / f"{name}.sock")
        self.server: asyncio.Server | None = None

    @property
    def route(self) -> ReplicaRoute:
        return ReplicaRoute(ReplicaID(self.replica.replica_id), f"unix:{self.path}")

    @property
    def target(self) -> Any:
        assert self.replica.code is not None
        return self.replica.code.target

    async def start(self, code: Any, args: tuple[Any, ...], max_ongoing: int) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(self.path)
        sock.listen(100)
        self.server = await listen(sock, self.replica.accept)
        spec = ReplicaSpec(
            replica_id=self.replica.replica_id,
            application="default",
            deployment="App",
            code=cloudpickle.dumps((code, args, {})),
            code_version="1",
            config=DeploymentConfig(max_ongoing_requests=max_ongoing),
            surroundings=Surroundings(),
            route_prefix="/",
            ingress=True,
        )
        await self.replica.control["initialize"](pack(spec))  # type: ignore[misc]

    async def reconfigure(self, max_ongoing: int) -> None:
        config = DeploymentConfig(max_ongoing_requests=max_ongoing)
        await self.replica.control["reconfigure"](pack(ReplicaReconfigure(config=config)))  # type: ignore[misc]

    def die(self) -> None:
        """Cut every connection without a word, as a killed process does, and listen no more."""
        if self.server is not None:
            self.server.close()
            self.server = None
        Path(self.path).unlink(missing_ok=True)
        for connection in list(self.replica._connections):
            if connection._transport is not None:
                connection._transport.abort()

    async def stop(self) -> None:
        self.die()
        await self.replica.stop()


class FakeClient:
    """What the front door asks of a routing client, with a snapshot given by hand."""

    def __init__(self, rig: Rig) -> None:
        self.is_behind = False
        self.name = "proxy"
        self.loop = asyncio.get_running_loop()
        self.snapshot = Snapshot()
        self.routes: RouteTable[AppRoute] = RouteTable({})
        self.on_change: list[Callable[[Snapshot], None]] = []
        self.metrics = ProcessMetrics(self.name, 1)
        self._rig = rig
        self._routers: dict[DeploymentID, Router] = {}

    def router(self, deployment: DeploymentID) -> Router:
        if deployment not in self._routers:
            self._routers[deployment] = self._rig.router("proxy", deployment)
        return self._routers[deployment]

    def show(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.routes = RouteTable(
            {app.route_prefix: app for app in snapshot.apps.values() if app.route_prefix}
        )
        for deployment, route in snapshot.deployments.items():
            self.router(deployment).update(route)
        for callback in self.on_change:
            callback(snapshot)


class Door:
    """A running front door."""

    def __init__(
        self,
        front: Front,
        client: FakeClient,
        counters: RequestCounters,
        state: ServerState,
        port: int,
    ) -> None:
        self.front = front
        self.counters = counters
        self.client = client
        self.state = state
        self.port = port
        self.router = client.router(DEPLOYMENT)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes and read until the other side closes."""
        reader, writer = await self.connect()
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()


@dataclass
class GrpcDoor:
    """A running gRPC front door."""

    server: GrpcServer
    client: FakeClient
    access: AccessLog
    address: str

    async def log(self) -> str:
        """What the access log says, all of it written."""
        await until(lambda: self.access._timer is None)
        assert self.access._writing is not None
        await asyncio.wrap_future(self.access._writing)
        return self.access._path.read_text()


class Rig:
    """Makes replicas, routers and front doors, and ends them.

    Attributes:
        is_shared: the user's code of several replicas can tell which one it runs in.
    """

    def __init__(self, folder: Path) -> None:
        self.is_shared = False
        self.folder = folder
        self.nodes: list[Node] = []
        self.routers: list[Router] = []
        self.doors: list[tuple[asyncio.Server, ServerState, AccessLog]] = []
        self.grpc_doors: list[GrpcDoor] = []

    async def node(self, code: Any, *args: Any, max_ongoing: int = 5) -> Node:
        place = SharedProcess() if self.is_shared else TestedProcess()
        node = Node(f"r{len(self.nodes)}", self.folder, place)
        self.nodes.append(node)
        await node.start(code, args, max_ongoing)
        return node

    def router(self, name: str = "test", deployment: DeploymentID = DEPLOYMENT) -> Router:
        router = make_router(deployment, name, random.Random(1))
        self.routers.append(router)
        return router

    def route(self, *nodes: Node, **fields: Any) -> DeploymentRoute:
        limit = nodes[0].replica.max_ongoing if nodes else 5
        fields.setdefault("max_ongoing_requests", limit)
        return DeploymentRoute(replicas=tuple(node.route for node in nodes), **fields)

    async def routed(self, *nodes: Node, **fields: Any) -> Router:
        """A router that is connected to these replicas."""
        router = self.router()
        router.update(self.route(*nodes, **fields))
        await until(lambda: len(router._open) == len(nodes))
        return router

    async def pair(self, code: Any, *args: Any, max_ongoing: int = 5) -> tuple[Node, Router]:
        node = await self.node(code, *args, max_ongoing=max_ongoing)
        return node, await self.routed(node)

    async def door(self, *nodes: Node, options: HTTPOptions | None = None, **fields: Any) -> Door:
        client = FakeClient(self)
        client.show(
            Snapshot(
                1,
                {"default": AppRoute("default", "/", "App")},
                {DEPLOYMENT: self.route(*nodes, **fields)},
            )
        )
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(1024)
        access = AccessLog(self.folder / f"access-{len(self.doors)}.log")
        counters = RequestCounters()
        front = make_front(cast(Any, client), options or HTTPOptions(), access, counters)
        state = ServerState()
        state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]
        config = cast(uvicorn.Config, SimpleNamespace(app=front))
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: ClientConnection(config, state, {}), sock=sock)
        self.doors.append((server, state, access))
        door = Door(front, client, counters, state, sock.getsockname()[1])
        await until(lambda: len(door.router._open) == len(nodes))
        return door

    async def grpc_door(
        self, *nodes: Node, apps: tuple[str, ...] = ("default",), **options: Any
    ) -> GrpcDoor:
        """A gRPC front door whose applications all lead to these replicas."""
        from tests.kitchen import pb2_grpc

        from remora.build.grpc_services import grpc_setup
        from remora.config import gRPCOptions
        from remora.proxy.grpc.server import GrpcServer

        client = FakeClient(self)
        routes = {DEPLOYMENT: self.route(*nodes)} if nodes else {}
        client.show(Snapshot(1, {name: AppRoute(name, None, "App") for name in apps}, routes))
        for name in apps:
            client.router(DeploymentID("App", name)).update(self.route(*nodes))
        functions = [
            pb2_grpc().add_KitchenServicer_to_server,
            "kitchen_pb2_grpc.add_GardenServicer_to_server",
        ]
        setup = grpc_setup(
            gRPCOptions(port=0, grpc_servicer_functions=functions, **options), "127.0.0.1"
        )
        assert setup is not None
        access = AccessLog(self.folder / f"access-grpc-{len(self.grpc_doors)}.log")
        server = GrpcServer(cast(Any, client), setup, access)
        port = await server.start()
        door = GrpcDoor(server, client, access, f"127.0.0.1:{port}")
        self.grpc_doors.append(door)
        for name in apps:
            router = client.router(DeploymentID("App", name))
            await until(lambda router=router: len(router._open) == len(nodes))  # type: ignore[misc]
        return door

    async def close(self) -> None:
        for grpc_door in self.grpc_doors:
            await grpc_door.server.stop(0)
            grpc_door.access.close()
        for server, state, access in self.doors:
            server.close()
            for connection in list(state.connections):
                cast(Any, connection).ending.abort()
            await until(lambda state=state: not state.connections)  # type: ignore[misc]
            access.close()
        for router in self.routers:
            router.disconnect()
        for node in self.nodes:
            await node.stop()
        await asyncio.sleep(0)


@asynccontextmanager
async def open_rig(folder: Path) -> AsyncIterator[Rig]:
    rig = Rig(folder)
    try:
        yield rig
    finally:
        await rig.close()
        # A replica says where it is.
        set_replica_context(None)
