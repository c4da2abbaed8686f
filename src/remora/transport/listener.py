"""The answering end of a connection.

`ServerConnection` does what every listener of the instance shares: the greeting, the token,
frames, flow control. What a request means is the subclass's business.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections.abc import Callable

from remora.errors import ProtocolError
from remora.transport.connection import Connection
from remora.wire import framing
from remora.wire.codec import pack, read_hello
from remora.wire.framing import RawFrame
from remora.wire.messages import LENT, WIRE_VERSION, FrameKind, Hello
from remora.wire.parcel import Body, Parcel

_log = logging.getLogger("remora.transport")
_HELLO = int(FrameKind.HELLO)
_SEGMENT = int(FrameKind.SEGMENT)
#: A peer that has not greeted after this long is cut off, so silent ones cannot pile up.
HELLO_TIMEOUT_S = 10.0


class ServerConnection(Connection):
    """One accepted connection. Subclasses implement `on_frame` and `on_closed`."""

    def __init__(self, token: str = "") -> None:
        super().__init__()
        self._token = token
        self._room: asyncio.Event | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        #: Who called, as it introduced itself.
        self.peer_name = "?"

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame of a peer that has proved itself."""
        raise NotImplementedError

    def on_greeted(self) -> None:
        """The greetings were exchanged; frames may be written."""

    def on_closed(self) -> None:
        """The connection is gone, whether the peer ever greeted or not."""
        raise NotImplementedError

    @property
    def is_greeted(self) -> bool:
        """The peer has proved itself."""
        return self._greeted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give the peer a limited time to greet."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._hello_timer = loop.call_later(HELLO_TIMEOUT_S, self._refuse, "no HELLO in time")

    def data_received(self, data: bytes) -> None:
        """Cut frames and hand them on; junk closes this connection and nothing else."""
        try:
            frames = self._decoder.feed(data)
            if not self._greeted:
                if not frames:
                    return
                self._check_hello(frames[0])
                frames = self._decoder.trust()
        except ProtocolError as error:
            self._refuse(str(error))
            return
        self._note_pace(frames)
        try:
            for frame in frames:
                if frame[1] & LENT:
                    frame = self._lend().opened(frame)
                elif frame[0] >= _SEGMENT:
                    self._lend().on_frame(frame)
                    continue
                self.on_frame(frame)
        except ProtocolError as error:
            self._refuse(str(error))

    def write(
        self,
        kind: int,
        number: int,
        meta: bytes = b"",
        body: Body = b"",
        flags: int = 0,
        load: int = 0,
    ) -> None:
        """Send a frame; dropped when the peer is gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if isinstance(body, Parcel):
            is_lent, parts = self._lend().address(body)
            flags |= LENT if is_lent else 0
            self._outbox.send_parts(kind, number, meta, parts, flags, load)
        else:
            self._outbox.send(kind, number, meta, body, flags, load)

    def write_now(
        self, kind: int, number: int, meta: bytes, body: bytes | memoryview, load: int
    ) -> None:
        """Send a small frame, and what waits before it, without waiting for the turn's end."""
        if self.is_open:
            self._outbox.write_now(framing.encode(kind, number, meta, body, 0, load))
            if self._is_calm:
                self._spinner.begin()

    def flush(self) -> None:
        """Let what was written leave now, and not at the end of the turn."""
        if self.is_open:
            self._outbox.flush()

    async def wait_writable(self) -> None:
        """Wait until the peer has taken most of what was sent."""
        if self._room is not None:
            await self._room.wait()

    def pause_writing(self) -> None:
        """The transport holds enough."""
        if self._room is None:
            self._room = asyncio.Event()
        self._room.clear()

    def resume_writing(self) -> None:
        """The transport has room again."""
        if self._room is not None:
            self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the peer."""
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        if self._lending is not None:
            self._lending.on_lost()
        self._transport = None
        if self._room is not None:
            self._room.set()
        self.on_closed()

    def _send_own(self, kind: int, body: bytes) -> None:
        self.write(kind, 0, b"", body)

    def _check_hello(self, frame: RawFrame) -> None:
        hello = read_hello(frame)
        # Who reaches a Unix socket of ours needs no token, and may have one all the same.
        if self._token and not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            raise ProtocolError("wrong cluster token")
        self._greeted = True
        self.peer_name = hello.name
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self.write(_HELLO, 0, pack(Hello(WIRE_VERSION)))
        self.on_greeted()

    def _refuse(self, reason: str) -> None:
        _log.warning("Closed a connection to the wire socket: %s", reason)
        if self._transport is not None:
            self._transport.abort()


async def listen(sock: socket.socket, make: Callable[[], ServerConnection]) -> asyncio.Server:
    """Serve connections on a listening Unix or TCP socket with the protocol `make()`."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_server(make, sock=sock)
    return await loop.create_server(make, sock=sock)
