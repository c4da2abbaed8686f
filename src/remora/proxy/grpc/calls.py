"""A gRPC request as a call to a replica: one frame back, or frames back and messages forth."""

from __future__ import annotations

import asyncio

from remora.router.call import CallState, StreamCall, UnaryCall
from remora.router.router import Router
from remora.wire.codec import decode_credit
from remora.wire.framing import RawFrame
from remora.wire.messages import Envelope, FrameKind
from remora.wire.window import cost

_CREDIT = int(FrameKind.CREDIT)


class WholeCall(UnaryCall):
    """One message there, one back."""

    __slots__ = ()

    async def answer(self) -> RawFrame:
        """Wait for the answer; an ERROR frame is returned like a RESPONSE.

        Raises:
            Exception: the call ended without an answer.
            asyncio.CancelledError: the client has left; the call was given up.
        """
        try:
            found = await self._future
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(found, tuple):
            return found
        raise found


class PartsCall(StreamCall):
    """Messages in at least one direction, as fast as whoever takes them allows."""

    __slots__ = ("_room", "_sender")

    def __init__(self, router: Router, envelope: Envelope, body: bytes) -> None:
        super().__init__(router, envelope, body)
        #: Bytes of messages that the replica has room for.
        self._room = 0
        self._sender: asyncio.Future[None] | None = None

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame; CREDIT is room for the client's messages."""
        if frame[0] == _CREDIT:
            # The handler has begun to read: what it has read cannot be sent to another one.
            self.answered = True
            self._room += decode_credit(frame[4])
            self._wake_sender()
            return
        super().on_frame(frame)

    async def send(self, message: bytes) -> bool:
        """Send a message once there is room; False: nobody wants it any more."""
        if not await self._wait_room():
            return False
        self._room -= cost(len(message))
        self._write(b"", message)
        return True

    async def end(self) -> None:
        """Say that the client has sent its last message."""
        if await self._wait_room():
            self._write(b"\x01", b"")

    def _write(self, meta: bytes, message: bytes) -> None:
        if self.link is not None and self.link.channel is not None:
            self.link.channel.send(FrameKind.BODY, self.number, meta, message)

    async def _wait_room(self) -> bool:
        while self.state is not CallState.DONE and (
            self._room <= 0 or self.state is not CallState.SENT
        ):
            self._sender = self.router.loop.create_future()
            await self._sender
        return self.state is not CallState.DONE

    def _close(self) -> None:
        super()._close()
        self._wake_sender()

    def _wake_sender(self) -> None:
        if self._sender is not None and not self._sender.done():
            self._sender.set_result(None)
