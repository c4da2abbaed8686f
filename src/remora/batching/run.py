"""A batch: calls that run together, and how each of them gets its part of the result.

The border to the user's function: whatever it raises or returns becomes an end for each caller.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, Sized
from typing import TYPE_CHECKING, Any, cast

from remora.batching.reply import Answer, Items
from remora.core.request.batcher import Entry
from remora.errors import USER_ERRORS, RemoraError
from remora.request_context import RequestContext, current

if TYPE_CHECKING:
    from remora.batching.queue import BatchQueue

_STOP_MARKERS = (StopIteration, StopAsyncIteration)
#: They have a length, but no place for each item.
_NO_LISTS = (str, bytes, bytearray, Mapping, Set)


class Call:
    """One caller's arguments, and where its answer goes.

    Attributes:
        owner: the object whose method was called, in a tuple; empty for a function.
        queue: where it waits.
        context: of the caller.
        entry: its place among those who wait.
        batch: the batch that it is in, once that runs.
    """

    __slots__ = ("args", "batch", "context", "entry", "kwargs", "owner", "queue", "reply")

    def __init__(
        self,
        queue: BatchQueue,
        owner: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reply: Answer | Items,
    ) -> None:
        self.queue = queue
        self.owner = owner
        self.args = args
        self.kwargs = kwargs
        self.reply = reply
        self.context = contextvars.copy_context()
        self.entry: Entry[Call] | None = None
        self.batch: Batch | None = None

    @property
    def item(self) -> Any:
        """The first argument: what is asked for its size and key."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


class Batch:
    """Calls that run together."""

    __slots__ = ("calls", "context", "request", "started_at", "task")

    def __init__(self, calls: list[Call], started_at: float) -> None:
        self.calls = calls
        self.started_at = started_at
        self.task: asyncio.Task[None] | None = None
        # The user's code runs as on behalf of the first caller (its trace), but of no request.
        self.context = calls[0].context
        caller = self.context.get(current)
        self.request = None if caller is None else _context_of_batch(caller)
        self.context.run(current.set, self.request)

    def call(self, function: Callable[..., Any]) -> Any:
        """Call the user's function with a list for each argument."""
        calls = self.calls
        first = calls[0]
        lists = [list(values) for values in zip(*(call.args for call in calls), strict=True)]
        named = {name: [call.kwargs[name] for call in calls] for name in first.kwargs}
        return function(*first.owner, *lists, **named)

    def open_calls(self) -> Iterator[Call]:
        """The calls that have no end yet."""
        return (call for call in self.calls if not call.reply.done)

    def fail(self, error: BaseException) -> None:
        """End every call that has no end yet."""
        for call in self.open_calls():
            call.reply.fail(error)

    def leave(self) -> None:
        """One of the callers is gone; the work stops when all are."""
        if self.task is not None and not any(True for _ in self.open_calls()):
            self.task.cancel()
            if self.request is not None:
                self.request.cancel_children()


def _context_of_batch(caller: RequestContext) -> RequestContext:
    """What is the same for all callers: the replica and the model; the trace is the first's."""
    return RequestContext(
        app_name=caller.app_name,
        deployment=caller.deployment,
        replica_id=caller.replica_id,
        multiplexed_model_id=caller.multiplexed_model_id,
        trace_context=caller.trace_context,
    )


async def answer(batch: Batch, name: str, function: Callable[..., Any]) -> None:
    """Run a coroutine function on a batch."""
    try:
        values = _checked(await batch.call(function), len(batch.calls), name, "return")
    except USER_ERRORS as error:  # Border: user code.
        batch.fail(error)
        return
    for call, value in zip(batch.calls, values, strict=True):
        if isinstance(value, Exception):
            call.reply.fail(value)
        else:
            call.reply.put(value)


async def stream(batch: Batch, name: str, function: Callable[..., Any]) -> None:
    """Run an async generator function on a batch."""
    try:
        items = batch.call(function)
        try:
            async for results in items:
                _hand_out(batch, _checked(results, len(batch.calls), name, "yield"))
                # A body that never waits would keep its readers from reading.
                await asyncio.sleep(0)
                for call in batch.open_calls():
                    await cast(Items, call.reply).wait_room(name)
                if not any(True for _ in batch.open_calls()):
                    break
        finally:
            await items.aclose()
    except USER_ERRORS as error:  # Border: user code.
        batch.fail(error)
    for call in batch.open_calls():
        cast(Items, call.reply).end()


def _hand_out(batch: Batch, values: list[Any]) -> None:
    for call, value in zip(batch.calls, values, strict=True):
        reply = cast(Items, call.reply)
        if (
            isinstance(value, _STOP_MARKERS)
            or value is StopIteration
            or value is StopAsyncIteration
        ):
            reply.end()
        elif isinstance(value, Exception):
            reply.fail(value)
        else:
            reply.put(value)


def _checked(results: object, num: int, name: str, verb: str) -> list[Any]:
    """The results of a batch of `num`, if there is one for each item."""
    if isinstance(results, (list, tuple)) or _is_list_like(results):
        # What it says of its length may be wrong, and none may be handed out then.
        values = list(cast(Iterable[Any], results))
        if len(values) == num:
            return values
        raise RemoraError(
            f"{name} {verb}ed {len(values)} results for a batch of {num}; it must {verb} one for "
            "each item, in the same order"
        )
    raise RemoraError(
        f"{name} {verb}ed {type(results).__name__} for a batch of {num}; it must {verb} a "
        "list with one result for each item, in the same order"
    )


def _is_list_like(results: object) -> bool:
    """An array, a tensor, a column: what iterates over its items. A table does over its columns."""
    if isinstance(results, _NO_LISTS) or hasattr(results, "columns"):
        return False
    return isinstance(results, Sized) and isinstance(results, Iterable)
