"""A connection between nodes whose sides prove the cluster token to each other, before anything else.

Theory of operation: `Proving` is the first protocol of a connection. The protocol that speaks on it is made
when the other side has proved itself, takes the transport over, and pays nothing for it from then on.
What is said is in `wire/proof.py`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from remora.errors import RefusedError
from remora.transport.secured import NotSecureError
from remora.transport.strangers import host_of, tell_refused, waiting
from remora.wire.proof import NONCE_BYTES, NotProvedError, ProvingCaller, ProvingListener

P = TypeVar("P", bound=asyncio.Protocol)

_CLOSED = "the other side closed the connection before it had proved itself"


class UnprovedError(ConnectionError):
    """A connection whose other side has not proved itself; says why."""


class Proving(asyncio.Protocol, Generic[P]):
    """One connection."""

    def __init__(self, make: Callable[[], P], token: str, *, accepts: bool) -> None:
        """Make it.

        Args:
            make: the protocol that follows.
            token: of the cluster.
            accepts: this side does; False: it connects.
        """
        self._make = make
        self._token = token
        self._accepts = accepts
        self._side: ProvingCaller | ProvingListener
        self._transport: asyncio.Transport
        #: The protocol that follows, or why there is none.
        self.inner: asyncio.Future[P] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say the first word, or give the other side a limited time for it."""
        # A cast, not a check: uvloop's transports inherit from none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        nonce = secrets.token_bytes(NONCE_BYTES)
        try:
            where = asked_for(transport, "sockname" if self._accepts else "peername")
            if self._accepts:
                self._side = ProvingListener(self._token, nonce, where)
                waiting.enter(self)
            else:
                self._side = ProvingCaller(self._token, nonce, where)
                self._transport.write(self._side.begin())
        except UnprovedError as error:
            if not self.inner.done() and not self._accepts:
                self.inner.set_exception(error)
            self._transport.abort()
        except NotProvedError as error:
            self._fail(error)

    def data_received(self, data: bytes) -> None:
        """Take what the other side says; junk ends this connection and nothing else."""
        if self._transport.is_closing():
            return
        try:
            reply = self._side.receive(data)
        except (NotProvedError, RefusedError) as error:
            self._fail(error)
            return
        if reply:
            self._transport.write(reply)
        if self._side.is_done:
            self._hand_over()

    def _hand_over(self) -> None:
        waiting.leave(self)
        inner = self._make()
        self._transport.set_protocol(inner)
        inner.connection_made(self._transport)
        if not self.inner.done():
            self.inner.set_result(inner)
        if self._side.rest:
            inner.data_received(self._side.rest)

    def _fail(self, error: NotProvedError | RefusedError) -> None:
        waiting.leave(self)
        if self._accepts:
            tell_refused(host_of(self._transport), str(error))
        elif not self.inner.done():
            said = _refused(error) if isinstance(error, RefusedError) else str(error)
            self.inner.set_exception(UnprovedError(said))
        if isinstance(error, NotProvedError) and error.reply:
            self._transport.write(error.reply)
            self._transport.close()
        else:
            self._transport.abort()

    def refuse(self, reason: str) -> None:
        """Close a connection whose other side has not proved itself in time."""
        tell_refused(host_of(self._transport), reason)
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits hears that nothing comes of it."""
        waiting.leave(self)
        if not self._accepts and not self.inner.done():
            known = isinstance(error, NotSecureError)
            self.inner.set_exception(error if error and known else UnprovedError(_CLOSED))


async def prove(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
    """Do the same on streams, on the side that has connected; what follows is read from `reader`.

    Raises:
        UnprovedError: the other side has not proved itself.
        OSError: the connection broke.
    """
    where = asked_for(writer.transport, "peername")
    try:
        side = ProvingCaller(token, secrets.token_bytes(NONCE_BYTES), where)
        writer.write(side.begin())
        while not side.is_done:
            # Not a byte more than what is said first.
            data = await reader.read(side.lacks)
            if not data:
                raise UnprovedError(_CLOSED)
            writer.write(side.receive(data))
    except NotProvedError as error:
        writer.write(error.reply)
        writer.close()
        raise UnprovedError(str(error)) from None
    except RefusedError as error:
        raise UnprovedError(_refused(error)) from None


def _refused(error: RefusedError) -> str:
    return f"it refuses: {error}"


def asked_for(transport: asyncio.BaseTransport, name: str) -> str:
    """The address of one end of a connection, as both ends see it: the one that was asked for.

    Args:
        transport: of the connection.
        name: `peername` on the side that connected, `sockname` on the one that accepted.

    Raises:
        UnprovedError: the other side has reset the connection, which has no ends any more.
    """
    ends = transport.get_extra_info(name)
    if ends is None:
        raise UnprovedError(_CLOSED)
    host, port = ends[:2]
    # Each machine names the interface of an address that is valid on one link in its own way.
    return f"{str(host).partition('%')[0]} {port}"
