"""What a call of a generator method returns: a stream of answers, taken at the reader's own pace."""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from remora.calls.object_refs import refuse_for_stream
from remora.calls.pending import FailedCall, PendingStream
from remora.calls.submit import loop_of
from remora.calls.threaded import ThreadCall
from remora.response import Response, not_in_a_loop
from remora.wire.messages import Envelope

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    #: What is iterated over. Written without brackets, a stream is one of `Any`.
    _T = TypeVar("_T", default=Any)
else:
    from typing import TypeVar

    _T = TypeVar("_T")

#: Items of a stream that cross from one thread to another at a time. Beyond a few dozen the
#: cost of a turn no longer shows; the bound keeps a slow reader's memory small.
_MAX_TAKEN = 128


class DeploymentResponseGenerator(Response, Generic[_T]):
    """The answers of one call of a generator method, taken at the reader's own pace.

    Dropping it unread gives the call up, as with any Python generator.
    """

    __slots__ = ("_call", "_ending", "_finished", "_taken")

    def __init__(self, call: PendingStream, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._call: PendingStream = call
        self._finished = False
        #: Items fetched from the call's loop that the reader has not had yet.
        self._taken: deque[Any] = deque()
        #: What comes after those: the end or an error; None: more items.
        self._ending: BaseException | None = None

    def __await__(self) -> NoReturn:
        raise TypeError("A streaming response cannot be awaited; use `async for`.")

    def result(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is more than one answer."""
        raise TypeError("A streaming response has no result(); use `for` or `async for`.")

    async def _to_object_ref(self) -> Any:
        """Refuse: a stream has no object references."""
        refuse_for_stream()

    def _to_object_ref_sync(
        self,
        _timeout_s: float | None = None,
        _allow_running_in_asyncio_loop: bool = False,
    ) -> Any:
        """Refuse: a stream has no object references."""
        refuse_for_stream()

    async def _to_object_ref_gen(self) -> Any:
        """Refuse: a stream has no object references."""
        refuse_for_stream()

    def _to_object_ref_gen_sync(
        self,
        _timeout_s: float | None = None,
        _allow_running_in_asyncio_loop: bool = False,
    ) -> Any:
        """Refuse: a stream has no object references."""
        refuse_for_stream()

    def __aiter__(self) -> AsyncIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        call = self._call
        loop = loop_of(call)
        try:
            if loop is None or loop is _get_running_loop():
                return await call.__anext__()  # type: ignore[no-any-return]
            while not self._taken:
                if self._ending is not None:
                    raise self._ending
                taking = asyncio.run_coroutine_threadsafe(_take(call), loop)
                self._keep(await asyncio.wrap_future(taking))
            return self._taken.popleft()  # type: ignore[no-any-return]
        except BaseException:
            self._finished = True
            raise

    async def _unopened_items(self) -> AsyncGenerator[Any, None]:
        """The items as the bytes that they came in; opened only if they cross loops anyway."""
        call = self._call
        if self._taken or loop_of(call) is not _get_running_loop():
            async for item in self:
                yield item
            return
        try:
            while True:
                yield await call.next_unopened()
        except StopAsyncIteration:
            self._finished = True

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        not_in_a_loop("Iterating over a streaming response", "`async for`")
        call = self._call
        if isinstance(call, FailedCall):
            raise call.error
        loop = loop_of(call)
        assert loop is not None
        if type(call) is ThreadCall:
            call.answer.result()
        while not self._taken:
            if self._ending is not None:
                self._finished = True
                if isinstance(self._ending, StopAsyncIteration):
                    raise StopIteration
                raise self._ending
            self._keep(asyncio.run_coroutine_threadsafe(_take(call), loop).result())
        return self._taken.popleft()  # type: ignore[no-any-return]

    def _keep(self, found: tuple[list[Any], BaseException | None]) -> None:
        items, self._ending = found
        self._taken.extend(items)

    def __del__(self) -> None:
        # The garbage collector comes at any moment, also in the middle of this very call.
        try:
            if not self._finished and (loop := loop_of(self._call)) is not None:
                loop.call_soon_threadsafe(self._call.cancel)
        except (AttributeError, RuntimeError):
            pass  # half made, or the loop is closed: then the call has ended

    def __repr__(self) -> str:
        return f"DeploymentResponseGenerator(request_id={self.request_id!r})"


async def _take(call: PendingStream) -> tuple[list[Any], BaseException | None]:
    """Wait for an item and take all that are there, so that few turns cross threads.

    Returns:
        the items, and what ends them (StopAsyncIteration at the end of the stream), if it came.
    """
    items: list[Any] = []
    try:
        items.append(await call.__anext__())
        while len(items) < _MAX_TAKEN and call.has_next():
            items.append(await call.__anext__())
    except Exception as ending:  # noqa: BLE001 - border: handed to the reader
        return items, ending
    return items, None
