"""The calling end of a connection: many requests at once, told apart by number.

The channel knows frames and numbers, not what they mean: whoever sends a request hands in a
`Sink`, and the channel passes it every frame of that number. A final frame (or the loss of the
connection) is the last thing a sink hears, and each sink hears exactly one of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from remora.errors import ConfigError, ConnectionLostError, ProtocolError, RefusedError
from remora.transport import address as addresses
from remora.transport import tcp
from remora.transport.connection import Connection
from remora.transport.membership import mine
from remora.transport.proving import Proving, UnprovedError
from remora.transport.secured import NotSecureError, Secured
from remora.transport.strangers import tell_not_taken
from remora.types import Seconds
from remora.wire import framing
from remora.wire.codec import pack, read_hello
from remora.wire.framing import LARGE_BODY_BYTES, RawFrame
from remora.wire.messages import LENT, WIRE_VERSION, FrameKind, Hello
from remora.wire.parcel import Body, Parcel

_log = logging.getLogger("remora.transport")
P = TypeVar("P")

#: Frames after which nothing more comes for a number.
FINAL = frozenset(
    (int(FrameKind.REJECT), int(FrameKind.RESPONSE), int(FrameKind.END), int(FrameKind.ERROR))
)
_HELLO = int(FrameKind.HELLO)
_REQUEST = int(FrameKind.REQUEST)
_FREED = int(FrameKind.FREED)
_BYE = int(FrameKind.BYE)
_PROMISES = int(FrameKind.PROMISES)
_NOTICE = int(FrameKind.NOTICE)
_SEGMENT = int(FrameKind.SEGMENT)
_LAST_NUMBER = 2**32 - 1
#: Above every number.
_NO_REQUEST = 2**32
#: A node that is there answers in milliseconds; the kernel would try for two minutes.
CONNECT_LIMIT_S: Seconds = 5.0


class Sink(Protocol):
    """Takes the frames of one request."""

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame; must not raise."""

    def on_lost(self, error: ConnectionLostError, never_started: bool) -> None:
        """The connection is gone and no final frame will come.

        Args:
            error: why.
            never_started: True: the other side has said that it did not begin this request.
        """


class Owner(Protocol):
    """Hears what concerns the connection as a whole."""

    def on_freed(self, room: int) -> None:
        """The other side, which turned us away, has room again, for `room` requests."""

    def on_bye(self) -> None:
        """The other side takes no new requests."""

    def on_promises(self, promises: bytes) -> None:
        """What the other side's code promises, packed."""

    def on_notice(self, meta: bytes) -> None:
        """The other side tells of itself (a packed `ReplicaNotice`)."""

    def on_lost(self, error: ConnectionLostError) -> None:
        """The connection is gone; its sinks have been told."""


class Channel(Connection):
    """One connection to a listener of the instance."""

    def __init__(self, peer: str, name: str, owner: Owner | None = None) -> None:
        super().__init__()
        self.peer = peer
        self._name = name
        self._owner = owner
        self._sinks: dict[int, Sink] = {}
        self._last = 0
        self._wrapped = False
        self._last_taken: int | None = None
        #: The first request in what waits for the end of the turn, or was written at one last.
        self._batch_first = _NO_REQUEST
        self._greeting: asyncio.Future[None] | None = None
        self._reason = "closed by the other side"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; requests may follow without waiting for the answer."""
        super().connection_made(transport)
        hello = Hello(WIRE_VERSION, self._name)
        self._outbox.send(_HELLO, 0, pack(hello))

    def request(self, sink: Sink, meta: bytes, body: Body = b"", flags: int = 0) -> int:
        """Send a request; its frames go to `sink`. Returns its number.

        Raises:
            ConnectionLostError: the connection is gone; nothing was sent.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionLostError(f"The connection to {self.peer} is closed ({self._reason})")
        number = self._last = self._last + 1
        if number > _LAST_NUMBER or self._wrapped:
            number = self._last = self._free_number(number)
        if isinstance(body, Parcel):
            is_lent, parts = self._lend().address(body)
            flags |= LENT if is_lent else 0
            self._outbox.send_parts(_REQUEST, number, meta, parts, flags)
            if is_lent and self._is_calm and not self._sinks:
                self._spinner.begin()
        elif self._sinks or len(body) > LARGE_BODY_BYTES:
            if self._outbox.is_empty or self._batch_first == _NO_REQUEST:
                self._batch_first = number
            self._outbox.send(_REQUEST, number, meta, body, flags)
        else:
            self._outbox.write_now(framing.encode(_REQUEST, number, meta, body, flags))
            if self._is_calm:
                self._spinner.begin()
        if self._outbox.is_broken:
            raise ConnectionLostError(f"{self.peer} had closed the connection: nothing was sent")
        self._sinks[number] = sink
        return number

    def send(self, kind: FrameKind, number: int, meta: bytes = b"", body: Body = b"") -> None:
        """Send a frame that belongs to a request; dropped when the connection is gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._outbox.is_empty:
            self._batch_first = _NO_REQUEST
        if isinstance(body, Parcel):
            is_lent, parts = self._lend().address(body)
            self._outbox.send_parts(kind, number, meta, parts, LENT if is_lent else 0)
        else:
            self._outbox.send(kind, number, meta, body)

    async def wait_greeted(self) -> None:
        """Wait until the other side has greeted, so has accepted us and speaks our version.

        A kernel completes connections to a listener whose process no longer accepts any.

        Raises:
            ConnectionLostError: the connection was lost first.
        """
        if self._greeted:
            return
        if self._transport is not None:
            self._greeting = asyncio.get_running_loop().create_future()
            await self._greeting
        if not self._greeted:
            raise ConnectionLostError(f"{self.peer} did not greet ({self._reason})")

    def hand_over(self, number: int, sink: Sink) -> None:
        """Pass what comes of this request to another sink from now on."""
        self._sinks[number] = sink

    def forget(self, number: int) -> None:
        """Pass no more frames of this request to its sink."""
        self._sinks.pop(number, None)

    def close(self, reason: str = "closed here") -> None:
        """Close the connection; requests still under way are lost."""
        self._reason = reason
        super().close()

    def data_received(self, data: bytes) -> None:
        """Cut frames and hand each to its sink."""
        try:
            frames = self._decoder.feed(data)
            if not self._greeted and frames:
                read_hello(frames[0])
                self._greeted = True
                self._end_greeting()
                frames = self._decoder.trust()
        except ProtocolError as error:
            self._break(error)
            return
        self._note_pace(frames)
        try:
            self._take(frames)
        except ProtocolError as error:
            self._break(error)

    def _take(self, frames: list[RawFrame]) -> None:
        sinks = self._sinks
        for frame in frames:
            kind = frame[0]
            number = frame[3]
            if number:
                if frame[1] & LENT:
                    frame = self._lend().opened(frame)
                sink = sinks.pop(number, None) if kind in FINAL else sinks.get(number)
                if sink is not None:
                    try:
                        sink.on_frame(frame)
                    except ProtocolError:
                        raise
                    except Exception as error:  # noqa: BLE001
                        # Border: others share this connection, and must not lose it by one's fault.
                        _log.error("A request to %s failed: %r", self.peer, error, exc_info=error)
            elif kind >= _SEGMENT:
                self._lend().on_frame(frame)
            elif self._owner is not None:
                self._tell_owner(self._owner, frame)

    def _tell_owner(self, owner: Owner, frame: RawFrame) -> None:
        kind = frame[0]
        if kind == _FREED:
            owner.on_freed(frame[2])
        elif kind == _BYE:
            self._last_taken = int.from_bytes(frame[4], "little")
            owner.on_bye()
        elif kind == _PROMISES:
            owner.on_promises(frame[4])
        elif kind == _NOTICE:
            owner.on_notice(frame[4])

    def connection_lost(self, error: Exception | None) -> None:
        """Tell every sink that nothing more comes."""
        self._transport = None
        if error is not None:
            self._reason = str(error) or type(error).__name__
        if isinstance(error, NotSecureError):
            tell_not_taken(self.peer, self._reason)
        self._end_greeting()
        if self._lending is not None:
            self._lending.on_lost()
        lost = ConnectionLostError(f"The connection to {self.peer} was lost ({self._reason})")
        sinks, self._sinks = self._sinks, {}
        if self._owner is not None:
            self._owner.on_lost(lost)
        for number, sink in sinks.items():
            sink.on_lost(lost, self._was_not_taken(number))

    def _break(self, error: ProtocolError) -> None:
        if isinstance(error, RefusedError):
            self._reason = f"{self.peer} refused it: {error}"
            tell_not_taken(self.peer, str(error))
        else:
            self._reason = f"{self.peer} does not speak this wire protocol: {error}"
        if self._transport is not None:
            self._transport.abort()

    def _send_own(self, kind: int, body: bytes) -> None:
        if self.is_open:
            if self._outbox.is_empty:
                self._batch_first = _NO_REQUEST
            self._outbox.send(kind, 0, b"", body)

    def _was_not_taken(self, number: int) -> bool:
        """The other side cannot have seen this request whole, or said goodbye before it did.

        A loop that was blocked for long writes to a connection whose end, and the goodbye before
        it, it has not read yet.
        """
        if self._outbox.is_batch_lost and number >= self._batch_first and not self._wrapped:
            return True
        # Numbers start over at 2^32.
        taken = self._last_taken
        return taken is not None and 0 < (number - taken) % 2**32 < 2**31

    def _free_number(self, number: int) -> int:
        """After 2^32 requests: start over, past those that are still under way."""
        self._wrapped = True
        number = number if number <= _LAST_NUMBER else 1
        while number in self._sinks:
            number = number + 1 if number < _LAST_NUMBER else 1
        return number

    def _end_greeting(self) -> None:
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_result(None)


async def connect(
    address: str, *, name: str, token: str = "", owner: Owner | None = None
) -> Channel:
    """Open a channel on the running loop.

    Args:
        address: see `transport.address`.
        name: who we are, for the other side's messages.
        token: of the cluster, which both sides prove on TCP; empty: this process's own.
        owner: hears of room, goodbye and loss.

    Raises:
        ConnectionLostError: nobody listens there, nobody answers in time, or not with a proof of the
            token, or not in TLS where this process's node has it.
    """
    where = addresses.parse(address, mine().node_id)

    def make() -> Channel:
        return Channel(address, name, owner)

    if where.path is None:
        return await _connect_far(address, where, make, token or mine().token)
    try:
        _, channel = await asyncio.get_running_loop().create_unix_connection(make, where.path)
    except OSError as error:
        raise ConnectionLostError(f"Nothing answers at {address}: {error}") from error
    return channel


async def _connect_far(
    address: str, where: addresses.Address, make: Callable[[], Channel], token: str
) -> Channel:
    """Connect to another node."""
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            return await _open_far(where, make, token)
    except TimeoutError:
        raise ConnectionLostError(
            f"Nothing answers at {address} within {CONNECT_LIMIT_S:g} s: is that node cut off, or "
            "does a firewall keep the ports above 1024 between the nodes closed?"
        ) from None
    except (ConfigError, NotSecureError) as error:
        tell_not_taken(address, str(error))
        raise ConnectionLostError(f"No secure connection to {address}: {error}") from error
    except UnprovedError as error:
        tell_not_taken(address, str(error))
        raise ConnectionLostError(f"No connection to {address}: {error}") from error
    except OSError as error:
        raise ConnectionLostError(f"Nothing answers at {address}: {error}") from error


async def _open_far(where: addresses.Address, make: Callable[[], Channel], token: str) -> Channel:
    loop = asyncio.get_running_loop()
    tls = mine().tls

    def prove() -> Proving[Channel]:
        return Proving(make, token, accepts=False)

    if tls is None:
        transport, proving = await loop.create_connection(prove, where.host, where.port)
        return await _or_abort(transport, proving.inner)
    transport, secured = await loop.create_connection(
        lambda: Secured(prove, tls.client(), where.host), where.host, where.port
    )
    return await _or_abort(transport, (await _or_abort(transport, secured.inner)).inner)


async def _or_abort(transport: asyncio.Transport, inner: asyncio.Future[P]) -> P:
    """Wait for the protocol that follows; without one the connection is of no use."""
    try:
        # Where it has failed already there is no socket, and it knows why.
        if not (inner.done() and inner.exception()):
            tcp.notice_loss(transport.get_extra_info("socket"))
        return await inner
    except BaseException:
        transport.abort()
        # What it ends with is of no interest any more.
        inner.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise
