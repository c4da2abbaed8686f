"""The answering end of a connection.

`ServerConnection` does what every listener of the instance shares: the greeting, frames, flow
control. What a request means is the subclass's business, who may connect that of `listen`.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

from remora.errors import ProtocolError
from remora.transport import tcp
from remora.transport.connection import Connection
from remora.transport.membership import mine
from remora.transport.proving import Proving
from remora.transport.secured import Secured
from remora.transport.strangers import host_of, tell_refused, waiting
from remora.wire import framing
from remora.wire.codec import pack, read_hello
from remora.wire.framing import RawFrame
from remora.wire.messages import LENT, WIRE_VERSION, FrameKind, Hello
from remora.wire.parcel import Body, Parcel

_HELLO = int(FrameKind.HELLO)
_SEGMENT = int(FrameKind.SEGMENT)

#: From Python 3.13 on a server deletes the file of its Unix socket. Here that belongs to whoever bound
#: it, and who listens there next may have been given the same one.
KEEPS_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class ServerConnection(Connection):
    """One accepted connection. Subclasses implement `on_frame` and `on_closed`."""

    def __init__(self) -> None:
        super().__init__()
        self._room: asyncio.Event | None = None
        #: Who called, as it introduced itself.
        self.peer_name = "?"

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame of a peer that has greeted."""
        raise NotImplementedError

    def on_greeted(self) -> None:
        """The greetings were exchanged; frames may be written."""

    def on_closed(self) -> None:
        """The connection is gone, whether the peer ever greeted or not."""
        raise NotImplementedError

    @property
    def is_greeted(self) -> bool:
        """The peer has said who it is, and what it speaks."""
        return self._greeted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give the peer a limited time to greet."""
        super().connection_made(transport)
        waiting.enter(self)

    def data_received(self, data: bytes) -> None:
        """Cut frames and hand them on; junk closes this connection and nothing else."""
        try:
            frames = self._decoder.feed(data)
            if not self._greeted:
                if not frames:
                    return
                if not self._takes(frames[0]):
                    return
                frames = self._decoder.trust()
        except ProtocolError as error:
            self.refuse(str(error))
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
            self.refuse(str(error))

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
        waiting.leave(self)
        if self._lending is not None:
            self._lending.on_lost()
        self._transport = None
        if self._room is not None:
            self._room.set()
        self.on_closed()

    def _send_own(self, kind: int, body: bytes) -> None:
        self.write(kind, 0, b"", body)

    def _takes(self, frame: RawFrame) -> bool:
        """Take a greeting; whoever sends one hears why it is not taken."""
        try:
            hello = read_hello(frame)
        except ProtocolError as error:
            self._turn_away(str(error))
            return False
        self._greeted = True
        self.peer_name = hello.name
        waiting.leave(self)
        self.write(_HELLO, 0, pack(Hello(WIRE_VERSION)))
        self.on_greeted()
        return True

    def _turn_away(self, reason: str) -> None:
        """Close the connection, and tell the other side why."""
        if self._transport is not None:
            self.write(_HELLO, 0, pack(Hello(WIRE_VERSION, refused=reason)))
            tell_refused(host_of(self._transport), reason)
            self.close()

    def refuse(self, reason: str) -> None:
        """Close the connection now: the other side would not understand why."""
        if self._transport is not None:
            tell_refused(host_of(self._transport), reason)
            self._transport.abort()


async def listen(
    sock: socket.socket, make: Callable[[], ServerConnection], token: str = ""
) -> asyncio.Server:
    """Serve connections on a listening Unix or TCP socket with the protocol `make()`.

    Who reaches a Unix socket of ours needs nothing else: the mode of its folder keeps others out. On TCP both sides
    prove the token to each other, in TLS where this process's node has it.

    Args:
        sock: bound and listening.
        make: what speaks with who has connected.
        token: of the cluster.
    """
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_server(make, sock=sock, **KEEPS_FILE)
    # What is accepted takes after the listening socket.
    tcp.notice_loss(sock)

    def prove() -> Proving[ServerConnection]:
        return Proving(make, token, accepts=True)

    if (tls := mine().tls) is not None:
        return await loop.create_server(lambda: Secured(prove, tls.server()), sock=sock)
    return await loop.create_server(prove, sock=sock)
