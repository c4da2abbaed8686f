"""Calls of threads without an event loop: they live on the background loop of the process."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from remora.calls.chained import ChainedCall
from remora.calls.pending import FindRouter, FrameOf, MakeBody
from remora.errors import InstanceError, RequestCancelledError
from remora.router.call import decode_value
from remora.wire.framing import RawFrame
from remora.wire.messages import CallKind, Envelope

if TYPE_CHECKING:
    from remora.request_context import Cancellable

_STREAM = CallKind.STREAM
#: Tasks that hand answers over to threads: a loop alone keeps only weak references.
_finishing: set[asyncio.Task[None]] = set()


class ThreadCall:
    """A call of a caller without a loop: lives on the background loop, waited for in a thread."""

    __slots__ = ("_call", "_cancelled", "_owners", "answer", "loop")

    def __init__(
        self,
        find_router: FindRouter,
        loop: asyncio.AbstractEventLoop,
        envelope: Envelope,
        make_body: MakeBody,
        owners: set[Cancellable] | None,
    ) -> None:
        self.loop = loop
        self._call: ChainedCall | None = None
        self._cancelled = False
        self._owners = owners
        if owners is not None:
            owners.add(self)
        #: The answer of a unary call, opened by whoever wants it; of a stream, that the call
        #: has been made.
        self.answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            loop.call_soon_threadsafe(self._begin, find_router, envelope, make_body)
        except RuntimeError:  # the loop is closed
            self._fail(InstanceError("The instance was shut down when this call was made."))

    def _fail(self, error: Exception) -> None:
        if self._owners is not None:
            self._owners.discard(self)
        self.answer.set_exception(error)

    def _begin(self, find_router: FindRouter, envelope: Envelope, make_body: MakeBody) -> None:
        try:
            call = ChainedCall(find_router, self.loop, envelope, make_body, self._owners, self)
        except Exception as error:  # noqa: BLE001 - border: handed over to the waiting thread
            # Another thread may have left the instance since the loop was looked up.
            self._fail(error)
            return
        self._call = call
        if self._cancelled:
            call.cancel()
        if envelope.kind is _STREAM:
            self.answer.set_result(None)
        else:
            task = self.loop.create_task(self._finish(call))
            _finishing.add(task)
            task.add_done_callback(_finishing.discard)

    async def _finish(self, call: ChainedCall) -> None:
        try:
            answer = await FrameOf(call)
        except asyncio.CancelledError:
            self.answer.set_exception(RequestCancelledError(call.request_id))
            raise
        except Exception as error:  # noqa: BLE001 - border: handed over to the waiting thread
            self.answer.set_exception(error)
        else:
            self.answer.set_result(answer)

    async def _wait(self) -> Any:
        future = asyncio.wrap_future(self.answer)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __await__(self) -> Generator[Any, None, Any]:
        return decode_value((yield from self.frame()))

    def frame(self) -> Generator[Any, None, RawFrame]:
        """Wait for the answer as it came; on any loop."""
        return self._wait().__await__()

    async def __anext__(self) -> Any:
        """The next item. Runs on the background loop."""
        if self._call is None:
            self.answer.result()  # raises why it was never made
        assert self._call is not None
        return await self._call.__anext__()

    async def next_unopened(self) -> Any:
        """The next item as the bytes that it came in. Runs on the background loop."""
        if self._call is None:
            self.answer.result()  # raises why it was never made
        assert self._call is not None
        return await self._call.next_unopened()

    def has_next(self) -> bool:
        """The next `anext` does not wait."""
        return self._call is not None and self._call.has_next()

    def cancel(self) -> None:
        """Give the call up; from any thread."""
        self._cancelled = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._cancel_on_loop)

    def _cancel_on_loop(self) -> None:
        if self._call is not None:
            self._call.cancel()
