"""The streams among a call's arguments, on the caller's side: pulled as far as the callee asks.

Nothing is pulled before the callee's first CREDIT, so a call that no replica began can be sent
again. From then on a window bounds what is under way. A source that raises ends its stream with
that error; the end of the call, or a callee that wants no more, closes the source.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from remora.errors import RequestCancelledError
from remora.transport.errors import encode_error
from remora.wire.codec import decode_grant, decode_stream_number, pack
from remora.wire.framing import RawFrame
from remora.wire.messages import FrameKind, Part
from remora.wire.parcel import Body
from remora.wire.window import cost

if TYPE_CHECKING:
    from remora.router.call import Call

_CREDIT = int(FrameKind.CREDIT)
#: A source that never waits for anything is made to let others run after this many items.
_ITEMS_PER_TURN = 64
#: Makes a body of an item.
Encode = Callable[[Any], "tuple[str, Body]"]


class Upload:
    """All streams of one call. Lives on its router's loop."""

    def __init__(
        self,
        sources: Sequence[AsyncGenerator[Any, None]],
        encode: Encode,
        context: contextvars.Context,
    ) -> None:
        """Take what is to be sent; `attach` says with which call.

        Args:
            sources: in the order of `Envelope.streams`; closed by us.
            encode: of each item.
            context: in which the sources run: that of the code which made the call.
        """
        self.encode = encode
        self.context = context
        self.call: Call | None = None
        self._streams = [_Outgoing(self, index, source) for index, source in enumerate(sources)]

    def on_frame(self, frame: RawFrame) -> None:
        """Take a CREDIT for one of the streams, or a CANCEL of one."""
        if frame[0] == _CREDIT:
            grant = decode_grant(frame[4])
            self._streams[grant.stream].grant(grant.num_bytes)
        else:
            self._streams[decode_stream_number(frame[4])].stop()

    def close(self) -> None:
        """Stop every source: the call has ended."""
        for stream in self._streams:
            stream.stop()

    def send(self, part: Part, body: Body) -> None:
        """Send a part with the call; dropped when the connection is gone."""
        call = self.call
        if call is not None and call.link is not None and call.link.channel is not None:
            call.link.channel.send(FrameKind.BODY, call.number, pack(part), body)


class _Outgoing:
    """One stream: a task that pulls the source, started by the first CREDIT."""

    __slots__ = ("_index", "_is_stopped", "_room", "_source", "_task", "_upload", "_waiter")

    def __init__(self, upload: Upload, index: int, source: AsyncGenerator[Any, None]) -> None:
        self._upload = upload
        self._index = index
        self._source = source
        self._room = 0
        self._is_stopped = False
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def grant(self, num_bytes: int) -> None:
        """The callee has room for more."""
        self._room += num_bytes
        if self._task is None:
            self._start(self._run())
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def stop(self) -> None:
        """Close the source, whether it was begun or not; once, because it may take its time."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._task is None:
            self._start(self._source.aclose())
        else:
            self._task.cancel()

    def _start(self, work: Any) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(_quietly(work), context=self._upload.context)

    async def _run(self) -> None:
        send, encode, source = self._upload.send, self._upload.encode, self._source
        index = self._index
        in_turn = 0
        try:
            async for item in source:
                how, body = encode(item)
                while self._room <= 0:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
                self._room -= cost(len(body))
                send(Part(index, how), body)
                in_turn += 1
                if in_turn >= _ITEMS_PER_TURN:
                    in_turn = 0
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            # Told by the callee to stop, or the source itself was cancelled: the last word either way.
            self._fail(RequestCancelledError(), "")
            raise
        except Exception as error:  # noqa: BLE001 - border: the user's generator
            from remora.observe.tracebacks import user_traceback

            self._fail(error, user_traceback(error))
        else:
            send(Part(index, last=True), b"")
        finally:
            await source.aclose()

    def _fail(self, error: Exception, traceback: str) -> None:
        meta, body = encode_error(error, traceback)
        self._upload.send(Part(self._index, last=True, error=meta), body)


async def _quietly(work: Any) -> None:
    """Run to the end; what a generator raises while it is closed has nobody to go to."""
    with suppress(Exception):
        await work
