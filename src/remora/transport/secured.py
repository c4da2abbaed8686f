"""A connection in TLS: what a protocol writes is sealed, and what it gets was opened.

Theory of operation: `Secured` stands between a socket and a protocol like `Channel`. The protocol is
made when both sides have proved who they are, and not before. asyncio's own TLS does not tell the
other side why it is refused, and waits for a turn of the loop with each write.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from remora.transport.node_tls import explain
from remora.transport.strangers import host_of, tell_refused, waiting
from remora.wire.foreign import NOT_TLS, describe, is_tls
from remora.wire.proof import Reason, refusal

P = TypeVar("P", bound=asyncio.Protocol)

#: Of a large value that much is sealed at once, so that it is not in memory twice.
_CHUNK_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024


class NotSecureError(ConnectionError):
    """A connection that did not become secure, or is not any more; says why."""


class _Sealing(asyncio.Transport):
    """What the protocol writes to."""

    def __init__(
        self,
        raw: asyncio.Transport,
        tls: ssl.SSLObject,
        sealed: ssl.MemoryBIO,
        follow: Callable[[asyncio.BaseProtocol], None],
    ) -> None:
        super().__init__()
        self._raw = raw
        self._tls = tls
        self._sealed = sealed
        self._follow = follow

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand what comes to another one from now on."""
        self._follow(protocol)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Seal and send."""
        if self._raw.is_closing():
            return
        if len(data) <= _CHUNK_BYTES:
            self._tls.write(data)
            self._raw.write(self._sealed.read())
            return
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK_BYTES):
            self._tls.write(view[start : start + _CHUNK_BYTES])
            self._raw.write(self._sealed.read())

    def is_closing(self) -> bool:
        """Nothing can be sent any more."""
        return self._raw.is_closing()

    def close(self) -> None:
        """Close after what was written has left."""
        if self._raw.is_closing():
            return
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # The other side has not said goodbye yet, and nobody waits for that.
        self._raw.write(self._sealed.read())
        self._raw.close()

    def abort(self) -> None:
        """Close now."""
        self._raw.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Tell of the connection below."""
        return self._raw.get_extra_info(name, default)


class Secured(asyncio.Protocol, Generic[P]):
    """One connection."""

    def __init__(self, make: Callable[[], P], context: ssl.SSLContext, host: str = "") -> None:
        """Make it.

        Args:
            make: the protocol inside.
            context: of this side.
            host: that was asked for; empty: this side accepts.
        """
        self._make = make
        self._accepts = not host
        self._received, self._sealed = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._received, self._sealed, server_side=not host, server_hostname=host or None
        )
        self._raw: asyncio.Transport
        self._inner: asyncio.Protocol | None = None
        self._is_first = True
        self._reason = "the other side closed the connection before it was secure"
        self._error: Exception | None = None
        #: The protocol inside, or why there is none.
        self.inner: asyncio.Future[P] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to shake hands."""
        self._raw = cast(asyncio.Transport, transport)
        if self._accepts:
            waiting.enter(self)
        else:
            self._shake()

    def refuse(self, reason: str) -> None:
        """Close a connection that did not become secure in time."""
        tell_refused(host_of(self._raw), reason)
        self._raw.abort()

    def data_received(self, data: bytes) -> None:
        """Open what came, and hand it on."""
        if self._is_first:
            self._is_first = False
            if not is_tls(data[:2]):
                self._turn_away(data)
                return
        self._received.write(data)
        if self._inner is None:
            self._shake()
        if self._inner is not None:
            self._open(self._inner)

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._flush()
        waiting.leave(self)
        self._inner = self._make()
        made = self._inner
        made.connection_made(_Sealing(self._raw, self._tls, self._sealed, self._follow))
        if not self.inner.done():
            self.inner.set_result(made)

    def _follow(self, protocol: asyncio.BaseProtocol) -> None:
        self._inner = cast(asyncio.Protocol, protocol)

    def _open(self, inner: asyncio.Protocol) -> None:
        opened = []
        is_over = False
        try:
            while data := self._tls.read(_READ_BYTES):
                opened.append(data)
                if not self._received.pending and not self._tls.pending():
                    break  # To ask once more would raise, which costs more than to look.
            else:
                is_over = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            is_over = True
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._flush()
        if opened:
            inner.data_received(opened[0] if len(opened) == 1 else b"".join(opened))
        if is_over:
            self._raw.close()

    def _turn_away(self, data: bytes) -> None:
        """End a connection on which the other side does not use TLS."""
        self._error = NotSecureError(NOT_TLS)
        if not self._accepts:
            self._raw.abort()
            return
        tell_refused(host_of(self._raw), describe(data) or NOT_TLS)
        if not describe(data):
            self._raw.write(refusal(Reason.TLS_ALONE))
        self._raw.close()

    def _fail(self, error: ssl.SSLError) -> None:
        self._error = NotSecureError(explain(error))
        if self._accepts and self._inner is None:
            tell_refused(host_of(self._raw), str(self._error))
        # What it says is for the other side: why.
        self._flush()
        self._raw.close()

    def _flush(self) -> None:
        if self._sealed.pending and not self._raw.is_closing():
            self._raw.write(self._sealed.read())

    def pause_writing(self) -> None:
        """The transport holds enough."""
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The transport has room again."""
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Hand it on; whoever waits for the handshake hears why there is none."""
        waiting.leave(self)
        error = self._error or error
        if self._inner is not None:
            self._inner.connection_lost(error)
        elif not self.inner.done() and not self._accepts:
            self.inner.set_exception(error or NotSecureError(self._reason))
