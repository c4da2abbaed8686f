"""uvicorn's server, serving our protocol."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

import uvicorn

from remora.proxy.accept import Acceptor, Connections, Tally
from remora.proxy.connection import ClientConnection
from remora.proxy.front import Front
from remora.transport.tls import ReloadingContext


class HttpServer(uvicorn.Server):
    """A server that stops by a signal and leaves the end of the process to its caller."""

    def __init__(self, front: Front, tally: Tally, tls: ReloadingContext | None = None) -> None:
        """Make a server.

        Args:
            front: decides where requests go.
            tally: what the proxies on one socket know of each other.
            tls: for HTTPS; None: plain HTTP.
        """
        super().__init__(
            uvicorn.Config(
                # Never called as an app: our protocol class finds it in the configuration.
                cast(Any, front),
                http=ClientConnection,
                ws="none",
                loop="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
            )
        )
        self.config.load()
        #: Set when the server is told to stop.
        self.stopping = asyncio.Event()
        self._tally = tally
        self._tls = tls
        self._connections: set[Any] = self.server_state.connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept: by turns on sockets that other proxies accept on as well.

        A proxy that is alone has nobody to give way to, and the event loop accepts at half the
        cost (25 µs for a connection instead of 53). With TLS it cannot: it would give every
        connection the context that it began with.
        """
        tls = self._tls
        if tls is None and not self._tally.others():
            await super().startup(sockets)
            return
        connections = Connections()
        self.server_state.connections = self._connections = connections
        self.servers = []

        def make() -> asyncio.Protocol:
            return ClientConnection(self.config, self.server_state, {})

        for sock in sockets or ():
            acceptor = Acceptor(
                sock,
                make,
                self._tally,
                lambda: len(connections),
                lambda: tls.context if tls else None,
            )
            connections.on_left = acceptor.tell
            acceptor.start()
            # uvicorn asks nothing of a server but to close, and waits until it has.
            self.servers.append(cast(Any, acceptor))
        self.started = True

    def num_ongoing(self) -> int:
        """Requests under way, streams and WebSockets among them. From any thread."""
        # A copy, which is made in one step: the loop adds and removes meanwhile.
        return sum(cast(ClientConnection, each).is_busy for each in list(self._connections))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, without raising the signal again at the end.

        uvicorn would, and so end the process before what comes after `serve`: the last lines of
        the access log. The handlers stay until the loop is closed, for the same reason.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: finish what is under way, and let others of this process know."""
        super().handle_exit(sig, frame)
        self.stopping.set()
