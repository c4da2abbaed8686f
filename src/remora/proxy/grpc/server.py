"""gRPC's own server on asyncio, with the user's services and the system's.

Several proxies open the same port: the kernel spreads connections over them. A proxy that dies
takes its connections with it; the channels of clients open new ones, to another proxy or to the
successor, by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any

from grpc import aio

from remora.core.request.grpc_status import GrpcCode
from remora.core.snapshot import Snapshot
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.observe.metrics import gauge
from remora.observe.tracing import active
from remora.proxy.grpc.front import GrpcFront
from remora.proxy.grpc.handlers import UserServices
from remora.proxy.grpc.system import Health, add_system_services
from remora.proxy.grpc.tls import Certificate
from remora.router.client import RoutingClient
from remora.types import Seconds
from remora.wire.grpc import GrpcSetup
from remora.wire.metrics import Family

_log = logging.getLogger("remora.proxy")


def _make_front(*given: Any) -> GrpcFront:
    tracing = active()
    if tracing is None:
        return GrpcFront(*given)
    # Only here: where nothing is traced, nobody needs it.
    from remora.proxy.grpc.traced import TracedGrpcFront

    return TracedGrpcFront(tracing, *given)


class GrpcServer:
    """The gRPC front door of one proxy, on the running loop."""

    def __init__(self, client: RoutingClient, setup: GrpcSetup, access: AccessLog) -> None:
        self._client = client
        self._setup = setup
        self._counters = RequestCounters("grpc", lambda code: GrpcCode(code).name)
        self._front = _make_front(client, setup, access, self._counters)
        self._health = Health(client, (service.name for service in setup.services))
        self._server: Any = None
        self._port = 0

    async def start(self) -> int:
        """Open the port and take requests; returns the port.

        Raises:
            RuntimeError: the port cannot be opened.
            OSError: a file of the certificate cannot be read.
        """
        setup = self._setup
        limit = setup.max_message_bytes
        server = self._server = aio.server(
            options=(
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.so_reuseport", 1),
            )
        )
        server.add_generic_rpc_handlers((UserServices(self._front, setup.services),))
        add_system_services(server, setup, self._health)
        host = f"[{setup.host}]" if ":" in setup.host else setup.host
        address = f"{host}:{setup.port}"
        if setup.ssl_certfile:
            port = server.add_secure_port(address, Certificate(setup).credentials())
        else:
            port = server.add_insecure_port(address)
        self._client.on_change.append(self._on_change)
        await server.start()
        self._port = int(port)
        return self._port

    async def stop(self, grace_s: Seconds) -> None:
        """Say so to whoever watches, take nothing new, and let what is under way end.

        gRPC's own way to stop would tell clients whose requests cross its notice that these were
        cancelled. Refused, or cut off with its connection, a request is UNAVAILABLE: clients know
        that it may be tried elsewhere.
        """
        self._front.is_stopping = True
        await self._health.drain()
        if self._front.under_way:
            await asyncio.wait(self._front.under_way, timeout=grace_s)
        cut_connections(self._port)
        await self._server.stop(None)

    def num_ongoing(self) -> int:
        """Requests under way. From any thread."""
        return self._front.num_ongoing

    def families(self) -> list[Family]:
        """What was counted."""
        ongoing = gauge("serve_num_ongoing_grpc_requests", (), {(): self.num_ongoing()})
        return [*self._counters.families(), ongoing]

    def _on_change(self, _: Snapshot) -> None:
        self._health.update()


def cut_connections(port: int) -> None:
    """Close the connections of clients that came to a port of this process; what was sent arrives."""
    for path in list(Path("/proc/self/fd").iterdir()):
        try:
            if not stat.S_ISSOCK(path.stat().st_mode):
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as sock:
                if (
                    sock.family in (socket.AF_INET, socket.AF_INET6)
                    and sock.getsockname()[1] == port
                    and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                ):
                    sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # Closed meanwhile, or never connected.
