"""One caller's connection to a replica: frames in, work started or turned away, frames out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, cast

from remora.core.request.admission import may_start
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
_ERROR = int(FrameKind.ERROR)
_REJECT = int(FrameKind.REJECT)
# A member of an enumeration is slow to look up.
_UNARY, _HTTP, _GRPC = CallKind.UNARY, CallKind.HTTP, CallKind.GRPC
_WEBSOCKET, _CONTROL = CallKind.WEBSOCKET, CallKind.CONTROL


class ReplicaConnection(ServerConnection):
    """Every REQUEST gets exactly one final frame, unless its caller goes away."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self._replica = replica
        self._work: dict[int, Work | HeldSlot | asyncio.Task[None]] = {}
        #: Requests that were cancelled and have not ended: a second time would stop them while
        #: they clean up after the first.
        self._cancelled: set[int] = set()
        #: Requests that were answered with an error, where somebody wants to know.
        self._failed: set[int] = set()
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
        self._replica.requests.refuse_cancelled(self, number)
        self._forget(number)
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
            # Not now: a task that is cancelled before its first step never runs its own code,
            # and this one has an answer to send and a slot to free.
            self._replica.loop.call_soon(self._cancel_begun, number)

    def _cancel_begun(self, number: int) -> None:
        work = self._work.get(number)
        if work is not None:
            work.cancel()

    def close_websockets(self) -> list[asyncio.Task[None]]:
        """Tell open WebSockets that this replica goes; returns what their handlers run in."""
        if not any(
            isinstance(work, Work) and work.envelope.kind is _WEBSOCKET
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
        load = min(self._replica.ongoing - 1, MAX_LOAD)
        if kind == _ERROR and self._replica.on_answered is not None:
            self._failed.add(number)
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
        if kind is _CONTROL:
            self._on_control(number, envelope.method, bytes(raw(body)))
            return
        if not may_start(replica.ongoing, replica.max_ongoing, replica.turns_away):
            replica.turned_away.add(self)
            self.was_rejected = True
            self.write(_REJECT, number, load=min(replica.ongoing, MAX_LOAD))
            return
        replica.ongoing += 1
        if replica.ongoing == 1:
            replica.on_busy()
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
        if kind is _UNARY and not envelope.streams:
            unary = replica.requests.unary
            self._work[number] = create_task(
                self._run(number, envelope, unary, self, number, envelope, body)
            )
            return
        if kind is _WEBSOCKET:
            websocket = replica.websockets.work(self, number, envelope, raw(body))
            self._work[number] = websocket
            websocket.task = create_task(
                self._run(number, envelope, replica.websockets.answer, websocket)
            )
            return
        work = self._work[number] = Work(self, number, envelope, body)
        if kind is _UNARY:
            coroutine = self._run(
                number, envelope, replica.requests.unary, self, number, envelope, body, work.inbound
            )
        elif kind is _HTTP:
            coroutine = self._run(number, envelope, replica.http_requests.answer, work)
        elif kind is _GRPC:
            coroutine = self._run(number, envelope, replica.grpc_requests.answer, work)
        else:
            coroutine = self._run(number, envelope, replica.requests.stream, work)
        work.task = create_task(coroutine)

    async def _run(
        self,
        number: int,
        envelope: Envelope,
        answer: Callable[..., Awaitable[None]],
        *arguments: object,
    ) -> None:
        """Work on a request from its first step to its end, however that comes."""
        began = perf_counter()
        replica = self._replica
        requests = replica.requests
        try:
            if self._cancelled and number in self._cancelled:
                # Given up in the turn that it came in: it is not begun.
                requests.refuse_cancelled(self, number)
            else:
                await answer(*arguments)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001
            # It failed while it answered; whoever waits must hear of an end all the same.
            replica.counts.failed(envelope.route, error)
            requests.refuse_broken(self, number, error)
        finally:
            took_s = perf_counter() - began
            replica.counts.ended(envelope.route, took_s)
            if replica.on_answered is not None:
                replica.on_answered(envelope, self._outcome(number), took_s)
            self._end(number, envelope.route)

    def _outcome(self, number: int) -> str:
        if number in self._failed:
            self._failed.discard(number)
            return "ERROR"
        return "CANCELLED" if number in self._cancelled else "OK"

    def task_of(self, number: int) -> asyncio.Task[None] | None:
        """The task that works on a request."""
        work = self._work.get(number)
        return work.task if isinstance(work, Work) else cast("asyncio.Task[None] | None", work)

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

    def _end(self, number: int, route: str) -> None:
        """A request is over; in the step that answered it, so that its slot is free at once."""
        work = self._work.pop(number, None)
        if self._cancelled and number in self._cancelled:
            self._cancelled.discard(number)
            self._replica.counts.cancelled(route)
        if isinstance(work, Work) and work.inbound is not None:
            work.inbound.close()
        self._replica.on_request_ended(self)
