"""One caller's connection to a replica: frames in, work started or turned away, frames out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from remora.core.admission import may_start
from remora.errors import MethodNotFoundError
from remora.replica.held import HeldSlot
from remora.replica.work import Work
from remora.transport.control import answer_control
from remora.transport.errors import encode_error
from remora.transport.listener import ServerConnection
from remora.wire.codec import UNREADABLE, decode_credit, decode_envelope
from remora.wire.framing import LARGE_BODY_BYTES, MAX_LOAD, RawFrame
from remora.wire.messages import WANTS_ROOM, CallKind, Envelope, FrameKind
from remora.wire.parcel import Body, Parcel, raw

if TYPE_CHECKING:
    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")
_REQUEST = int(FrameKind.REQUEST)
_BODY = int(FrameKind.BODY)
_CANCEL = int(FrameKind.CANCEL)
_CREDIT = int(FrameKind.CREDIT)
_REJECT = int(FrameKind.REJECT)


class ReplicaConnection(ServerConnection):
    """Every REQUEST gets exactly one final frame, unless its caller goes away."""

    def __init__(self, replica: Replica, token: str = "") -> None:
        super().__init__(token)
        self._replica = replica
        self._work: dict[int, Work | HeldSlot | asyncio.Task[None]] = {}
        #: Requests that were cancelled and have not ended: a second time would stop them while
        #: they clean up after the first.
        self._cancelled: set[int] = set()
        #: Requests whose final frame was sent and whose task has not ended.
        self._answered: set[int] = set()
        self._last_number = 0
        #: Requests with parts to be sent at the end of this turn.
        self._held: list[Work] = []
        #: A request was turned away since this caller was last told of room.
        self.was_rejected = False

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame of the caller."""
        kind, flags, _, number, meta, body = frame
        if kind == _REQUEST:
            self._last_number = number
            self._on_request(number, meta, body)
            if flags & WANTS_ROOM:
                self._replica.tell_of_room(self)
            return
        work = self._work.get(number)
        if work is None:
            return
        if kind == _CANCEL:
            self._cancel(number)
        elif isinstance(work, Work):
            if kind == _CREDIT:
                work.grant(decode_credit(meta))
            elif kind == _BODY:
                if work.inbound is not None:
                    work.inbound.feed(meta, body)
                else:
                    work.feed(raw(body), meta)
        elif kind == _BODY and isinstance(work, HeldSlot):
            self._begin(number, decode_envelope(meta), body)

    def release(self, number: int) -> None:
        """A slot is not wanted after all."""
        self._work.pop(number, None)
        self._cancelled.discard(number)
        self._replica.requests.refuse_cancelled(self, number)
        self._free(number)

    def _free(self, number: int) -> None:
        """The slot of a request is free."""
        if number in self._answered:
            self._answered.discard(number)
            self._replica.num_answered -= 1
        self._replica.on_request_ended(self)

    def on_greeted(self) -> None:
        """Tell the caller what there is to tell: which requests may run twice, and the notice."""
        promises = self._replica.promises
        if promises is not None:
            self.write(FrameKind.PROMISES, 0, promises)
        self._replica.notices.greet(self)

    def on_closed(self) -> None:
        """The caller is gone: nobody wants the answers any more."""
        self._replica.forget(self)
        for number in list(self._work):
            self._cancel(number)

    def _cancel(self, number: int) -> None:
        if number not in self._cancelled:
            self._cancelled.add(number)
            self._work[number].cancel()

    def close_websockets(self) -> list[asyncio.Task[None]]:
        """Tell open WebSockets that this replica goes; returns what their handlers run in."""
        if not any(
            isinstance(work, Work) and work.envelope.kind is CallKind.WEBSOCKET
            for work in self._work.values()
        ):
            return []
        from remora.replica.websocket_work import WebSocketWork

        open_ones = [w for w in self._work.values() if isinstance(w, WebSocketWork)]
        return [w.task for w in open_ones if w.task is not None and w.restart()]

    def hold(self, work: Work) -> None:
        """Let a request's small parts leave at the end of this turn of the loop."""
        held = self._held
        if not held:
            self._replica.loop.call_soon(self._release)
        held.append(work)

    def _release(self) -> None:
        held, self._held = self._held, []
        for work in held:
            work.release()
        # Not a turn later.
        self.flush()

    def say_bye(self) -> None:
        """Tell the caller that nothing after the last request was or will be begun."""
        self.write(FrameKind.BYE, 0, self._last_number.to_bytes(8, "little"))

    def finish(self, number: int, kind: int, meta: bytes = b"", body: Body = b"") -> None:
        """Send a final frame; it carries how busy the replica is without this request."""
        replica = self._replica
        # Several may be answered in one turn of the loop, before the first of them has ended.
        if number not in self._answered:
            self._answered.add(number)
            replica.num_answered += 1
        load = min(replica.ongoing - replica.num_answered, MAX_LOAD)
        if isinstance(body, Parcel):
            self.write(kind, number, meta, body, 0, load)
        elif len(self._work) == 1 and len(body) <= LARGE_BODY_BYTES:
            self.write_now(kind, number, meta, body, load)
        else:
            self.write(kind, number, meta, body, 0, load)

    def _on_request(self, number: int, meta: bytes, body: Body) -> None:
        try:
            envelope = decode_envelope(meta)
        except UNREADABLE as error:
            _log.warning(
                "Closed a connection of %s: unreadable envelope: %s", self.peer_name, error
            )
            self.close()
            return
        replica = self._replica
        kind = envelope.kind
        if kind is CallKind.CONTROL:
            self._on_control(number, envelope.method, bytes(raw(body)))
            return
        if not may_start(replica.ongoing, replica.max_ongoing, replica.turns_away):
            replica.turned_away.add(self)
            self.was_rejected = True
            self.write(_REJECT, number, load=min(replica.ongoing, MAX_LOAD))
            return
        replica.ongoing += 1
        if replica.ongoing == 1:
            replica.watchdog.arm()
        if envelope.hold:
            self._work[number] = HeldSlot(self, number)
            self.write(_CREDIT, number)
            return
        self._begin(number, envelope, body)

    def _begin(self, number: int, envelope: Envelope, body: Body) -> None:
        """Run a request that has been counted."""
        replica = self._replica
        kind = envelope.kind
        create_task = replica.loop.create_task
        if kind is CallKind.UNARY and not envelope.streams:
            task = create_task(replica.requests.unary(self, number, envelope, body))
            self._work[number] = task
        elif kind is CallKind.UNARY:
            work = self._work[number] = Work(self, number, envelope, body)
            inbound = work.inbound
            task = create_task(replica.requests.unary(self, number, envelope, body, inbound))
            work.task = task
        elif kind is CallKind.WEBSOCKET:
            websocket = replica.websockets.work(self, number, envelope, raw(body))
            self._work[number] = websocket
            task = websocket.task = create_task(replica.websockets.answer(websocket))
        else:
            work = self._work[number] = Work(self, number, envelope, body)
            if kind is CallKind.HTTP:
                run = replica.http_requests.answer
            elif kind is CallKind.GRPC:
                run = replica.grpc_requests.answer
            else:
                run = replica.requests.stream
            task = work.task = create_task(run(work))
        # A task that is cancelled before its first step never runs its own code.
        task.add_done_callback(_End(self, number))

    def _on_control(self, number: int, method: str, body: bytes) -> None:
        handler = self._replica.control.get(method)
        if handler is None:
            wrong = MethodNotFoundError(f"A replica has no control method {method!r}")
            self.write(FrameKind.ERROR, number, *encode_error(wrong))
            return
        task = self._replica.loop.create_task(answer_control(self, number, method, body, handler))
        self._work[number] = task
        task.add_done_callback(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        self._work.pop(number, None)
        self._cancelled.discard(number)

    def end(self, number: int, task: asyncio.Task[None]) -> None:
        """A request's task is over, however it ended."""
        work = self._work.pop(number, None)
        if self._cancelled:
            self._cancelled.discard(number)
        # The work of a plain call is its task.
        if work is not task and isinstance(work, Work) and work.inbound is not None:
            work.inbound.close()
        replica = self._replica
        if task.cancelled():
            # It never took its first step, so it sent no final frame either.
            replica.requests.refuse_cancelled(self, number)
        elif (error := task.exception()) is not None:
            # It failed while it answered; whoever waits must hear of an end all the same.
            replica.requests.refuse_broken(self, number, error)
        self._free(number)


class _End:
    """The done-callback of a request's task (a small object is cheaper than a closure)."""

    __slots__ = ("connection", "number")

    def __init__(self, connection: ReplicaConnection, number: int) -> None:
        self.connection = connection
        self.number = number

    def __call__(self, task: asyncio.Task[None]) -> None:
        self.connection.end(self.number, task)
