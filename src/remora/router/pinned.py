"""Calls that are meant for one certain replica: a slot reserved on it, and a call to each.

A reserved slot is a request that the replica has let in, and whose content comes later: counted,
limited, cancelled and timed out like every other. Nothing else has to be known of it anywhere.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from remora.errors import ConnectionLostError, ReplicaUnavailableError
from remora.router.call import Call, CallState, StreamCall, UnaryCall
from remora.wire.codec import pack
from remora.wire.framing import RawFrame
from remora.wire.messages import CallKind, Envelope, FrameKind
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.router.link import ReplicaLink
    from remora.router.router import Router

_CREDIT = int(FrameKind.CREDIT)


class HeldSlot(Call):
    """A slot on the replica that the router chose. Lives on its router's loop.

    Stands in for a router where one call is made: `call` or `stream` gives the slot away.
    """

    __slots__ = ("_accepted", "_error")

    def __init__(self, router: Router, envelope: Envelope, body: Body = b"") -> None:
        """Prepare a call that only holds a slot; the router is still to be asked.

        Args:
            router: of the deployment.
            envelope: of the call that is going to be made.
            body: its arguments, for policies that look at them; they do not travel.
        """
        envelope.hold = True
        envelope.caller = router.name
        super().__init__(router, envelope, body)
        self._error: Exception | None = None
        self._accepted: asyncio.Future[None] = router.loop.create_future()

    async def wait_held(self) -> ReplicaLink:
        """Wait until a replica has let us in; says which.

        Raises:
            RequestError: none will, or the time is up.

        Cancellation: gives the slot back.
        """
        try:
            await self._accepted
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        assert self.link is not None
        return self.link

    @property
    def name(self) -> str:
        """Who calls."""
        return self.router.name

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where it lives."""
        return self.router.loop

    def call(self, envelope: Envelope, body: Body) -> UnaryCall:
        """Use the slot for a request with one answer."""
        call = UnaryCall(self.router, envelope, body)
        self._give(call)
        return call

    def stream(self, envelope: Envelope, body: Body) -> StreamCall:
        """Use the slot for a request whose answer is read frame by frame."""
        call = StreamCall(self.router, envelope, body)
        self._give(call)
        return call

    def _give(self, call: Call) -> None:
        link = self.link
        if self.state is CallState.DONE or link is None or link.channel is None:
            replica_id = link.replica_id if link is not None else "?"
            call.fail(self._error or ReplicaUnavailableError(replica_id))
            return
        if call.deadline is not None:
            call.envelope.timeout_s = max(0.0, call.deadline - self.loop.time())
        try:
            link.channel.send(FrameKind.BODY, self.number, pack(call.envelope), call.body)
        except Exception as error:  # noqa: BLE001 - a message too large to frame fails alone
            call.fail(error)
            self.cancel()
            return
        call.number, call.link, call.pinned = self.number, link, link
        call.state = CallState.SENT
        link.channel.hand_over(self.number, call)
        self._close()

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame; CREDIT says that we are in."""
        if frame[0] == _CREDIT:
            self.pinned = self.link
            if not self._accepted.done():
                self._accepted.set_result(None)
            return
        super().on_frame(frame)

    def on_lost(self, error: ConnectionLostError, never_started: bool) -> None:
        """The replica is gone: before it let us in, another one may."""
        link = self.pinned
        if link is None:
            super().on_lost(error, True)
            return
        link.on_lost_one()
        if self.state is not CallState.DONE:
            self.fail(ReplicaUnavailableError(link.replica_id))

    def _deliver(self, frame: RawFrame) -> None:
        """Ignore: what the replica says in the end is that the slot is free."""

    def _deliver_error(self, error: Exception) -> None:
        self._error = error
        if not self._accepted.done():
            self._accepted.set_result(None)


def call_each(router: Router, envelope: Envelope, body: Body) -> list[UnaryCall]:
    """Send a request to every replica there is; full ones get it as soon as they have room."""
    calls = []
    for link in router.links:
        each = replace(envelope, kind=CallKind.UNARY, caller=router.name)
        call = UnaryCall(router, each, body)
        call.pinned = link
        router.submit_pinned(call)
        calls.append(call)
    return calls
