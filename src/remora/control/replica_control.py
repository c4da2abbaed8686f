"""Calls from the controller to its replicas: one connection each, opened when it is needed.

Rules: knows methods and bodies, decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar

import msgspec

from remora.transport.channel import Channel, connect
from remora.transport.control import call_control, stream_control

T = TypeVar("T")


class ReplicaControl(Protocol):
    """A connection to one replica."""

    async def call(
        self,
        method: str,
        body: msgspec.Struct | None = None,
        reply: type[T] | None = None,
        timeout_s: float | None = None,
    ) -> T | None:
        """Call a control method.

        Raises:
            ConnectionLostError: the replica is gone.
            TimeoutError: no answer in time.
            RemoteError: the method raised; the text is all that comes here, see `transport.control`.
        """

    def stream(
        self, method: str, body: msgspec.Struct | None, item: type[T]
    ) -> AsyncGenerator[T, None]:
        """Call a control method that answers with a stream; closing the generator ends it there.

        Raises:
            ConnectionLostError: the replica is gone.
            RemoteError: the method raised.
        """

    @property
    def is_open(self) -> bool:
        """Calls can be made."""

    def close(self) -> None:
        """Let go of it; calls under way are lost."""


#: Opens a link to an address; raises ConnectionLostError when nobody answers there.
Connect = Callable[[str], Awaitable[ReplicaControl]]


class WireControl:
    """A link over the wire."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def call(
        self,
        method: str,
        body: msgspec.Struct | None = None,
        reply: type[T] | None = None,
        timeout_s: float | None = None,
    ) -> T | None:
        """Call a control method."""
        return await call_control(self._channel, method, body, reply, timeout_s)

    async def stream(
        self, method: str, body: msgspec.Struct | None, item: type[T]
    ) -> AsyncGenerator[T, None]:
        """Call a control method that answers with a stream."""
        async with aclosing(stream_control(self._channel, method, body, item)) as items:  # type: ignore[type-var]
            async for each in items:
                yield each

    @property
    def is_open(self) -> bool:
        """Calls can be made."""
        return self._channel.is_open

    def close(self) -> None:
        """Let go of it."""
        self._channel.close()


async def connect_replica(address: str) -> ReplicaControl:
    """Open a link over the wire."""
    return WireControl(await connect(address, name="controller"))
