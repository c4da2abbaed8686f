"""Gathers the calls of one batched function of one object, and starts their batches.

`core.batcher` decides which calls run together and when; this module asks it whenever something
changed.

Concurrency: lives on the event loop of the first call. Options may be set from any thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from numbers import Real
from typing import Any, cast

from remora.batching.options import BatchOptions
from remora.batching.reply import Answer, Items
from remora.batching.run import Batch, Call, answer, stream
from remora.context import ReplicaContext, replica_context_or_none
from remora.core.request.batch_wait import Outlook, Returns
from remora.core.request.batcher import Batcher, TooLargeError, UnmeasurableError
from remora.errors import RemoraError
from remora.observe.batches import BatchCounters
from remora.request_context import current

_log = logging.getLogger("remora.batching")


class BatchQueue:
    """The calls of one batched function.

    Args:
        name: of the function, for messages.
        function: the user's; takes lists.
        options: a copy of its own.
        streams: the function is an async generator.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], options: BatchOptions, *, streams: bool
    ) -> None:
        self.name = name
        self.options = options
        self._function = function
        self._streams = streams
        cost_fn = None if options.batch_size_fn is None else self._size_of
        self._batcher: Batcher[Call] = Batcher(
            options.max_batch_size, options.batch_wait_timeout_s, cost_fn
        )
        self._returns = Returns(options.batch_wait_timeout_s)
        self._counters = BatchCounters()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replica: ReplicaContext | None = None
        self._running: set[Batch] = set()
        self._num_running_calls = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_pump_scheduled = False
        self._warned_of = 0

    # -- from the callers -------------------------------------------------------------------

    def submit(
        self, owner: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any], shape: Hashable
    ) -> Call:
        """Let a call wait for its batch.

        Args:
            owner: the object whose method it is, or nothing.
            args: single values.
            kwargs: single values.
            shape: only calls of one shape can be put into the same lists.

        Raises:
            RemoraError: the call alone is larger than a batch may be.
            TypeError: `key_fn` or `batch_size_fn` gave what they must not.
            RuntimeError: the queue works on another event loop.
        """
        loop = self._loop
        if loop is None or loop is not asyncio.get_running_loop():
            loop = self._enter_loop()
        call = Call(self, owner, args, kwargs, Items(loop) if self._streams else Answer(loop))
        request = call.context.get(current)
        model_id = "" if request is None else request.multiplexed_model_id
        now = loop.time()
        try:
            call.entry = self._batcher.add(call, (model_id, shape, self._key_of(call)), now)
        except TooLargeError as error:
            raise RemoraError(
                f"{self.name} cannot take this item: by batch_size_fn it has a size of "
                f"{error.cost:g}, and max_batch_size is {error.max_cost:g}. Split the item, or "
                "raise max_batch_size."
            ) from None
        self._returns.on_arrival(now)
        self._schedule_pump()
        return call

    def leave(self, call: Call) -> None:
        """The caller is gone, or has all that it wants."""
        call.reply.leave()
        if call.batch is not None:
            call.batch.leave()
        elif call.entry is not None and self._batcher.cancel(call.entry):
            call.entry = None  # An entry and its call hold each other.
            self._schedule_pump()

    @property
    def is_over(self) -> bool:
        """Its event loop was closed: whoever waited there has gone with it."""
        return self._loop is not None and self._loop.is_closed()

    def count_into(self, total: BatchCounters) -> int:
        """Add what the batches of this queue were like to `total`; returns how many calls wait."""
        total.add(self._counters)
        return len(self._batcher)

    def set_options(self, options: BatchOptions) -> None:
        """Change how calls are gathered; the next batch follows it. From any thread."""
        self.options = options
        self._batcher.max_size = options.max_batch_size
        self._batcher.max_wait_s = self._returns.window_s = options.batch_wait_timeout_s
        loop = self._loop
        if loop is not None and not loop.is_closed():
            self._warn_of_small_limit()
            loop.call_soon_threadsafe(self._schedule_pump)

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not None:
            raise RuntimeError(
                f"{self.name} gathers its batches on the event loop of its first call, which still "
                "runs; it cannot be called from another one. Call it from there, or give each "
                "loop an object of its own."
            )
        self._loop = loop
        self._replica = replica_context_or_none()
        if self._replica is not None:
            self._replica.batching.add(self)
        self._warn_of_small_limit()
        return loop

    def _key_of(self, call: Call) -> Hashable:
        key_fn = self.options.key_fn
        if key_fn is None:
            return None
        key = key_fn(call.item)
        try:
            hash(key)
        except TypeError:
            raise TypeError(
                f"key_fn of {self.name} returned {type(key).__name__}, which cannot be hashed; "
                "return a number, a text or a tuple of them"
            ) from None
        return key

    def _size_of(self, calls: Sequence[Call]) -> float:
        assert self.options.batch_size_fn is not None
        size: object = self.options.batch_size_fn([call.item for call in calls])
        if not isinstance(size, Real) or not cast(Any, size) >= 0:
            raise TypeError(f"batch_size_fn of {self.name} returned {size!r}, not a number >= 0")
        return float(cast(Any, size))

    def _max_ongoing_requests(self) -> int:
        """The limit of this replica; 0: in none, or unknown."""
        return 0 if self._replica is None else self._replica.max_ongoing_requests

    def _warn_of_small_limit(self) -> None:
        limit = self._max_ongoing_requests()
        wanted = self.options.max_batch_size * self.options.max_concurrent_batches
        if self.options.batch_size_fn is None and 0 < limit < wanted != self._warned_of:
            self._warned_of = wanted
            _log.warning(
                "%s: max_batch_size=%d x max_concurrent_batches=%d is more than "
                "max_ongoing_requests=%d of the deployment, so batches cannot fill. Raise "
                "max_ongoing_requests to at least %d.",
                self.name,
                self.options.max_batch_size,
                self.options.max_concurrent_batches,
                limit,
                wanted,
            )

    # -- when a batch starts ------------------------------------------------------------------

    def _schedule_pump(self) -> None:
        """Decide a moment later: what was sent together arrives in one turn of the loop or two."""
        if self._is_pump_scheduled or len(self._running) >= self.options.max_concurrent_batches:
            return
        assert self._loop is not None
        self._is_pump_scheduled = True
        self._loop.call_soon(self._loop.call_soon, self._pump, 0.0)

    def _pump(self, at_least: float) -> None:
        """Start what is due, and come back when something may be.

        A timer may fire a trifle early: what it was set for is due all the same.
        """
        assert self._loop is not None
        self._is_pump_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = max(self._loop.time(), at_least)
        while len(self._running) < self.options.max_concurrent_batches and len(self._batcher):
            outlook = self._outlook(now)
            try:
                taken = self._batcher.take(now, outlook)
                due_at = None if taken is not None else self._batcher.due_at(now, outlook)
            except UnmeasurableError as failed:
                self._batcher.cancel(failed.entry)
                failed.entry.item.reply.fail(failed.__cause__)
                continue
            if taken is not None:
                self._counters.started(
                    taken.cost, self._batcher.max_size, now - taken.entries[0].added_at
                )
                self._start([entry.item for entry in taken.entries], now)
            elif due_at is not None:
                self._timer = self._loop.call_at(due_at, self._pump, due_at)
                return

    def _outlook(self, now: float) -> Outlook | None:
        if self.options.wait_policy == "always":
            return None
        outlook = self._returns.outlook(now)
        if limit := self._max_ongoing_requests():
            outlook = outlook.limited(limit, len(self._batcher) + self._num_running_calls)
        return outlook

    # -- a batch ------------------------------------------------------------------------------

    def _start(self, calls: list[Call], now: float) -> None:
        assert self._loop is not None
        batch = Batch(calls, now)
        for call in calls:
            call.batch, call.entry = batch, None
        run = (stream if self._streams else answer)(batch, self.name, self._function)
        batch.task = self._loop.create_task(run, context=batch.context)
        batch.task.add_done_callback(lambda task: self._on_ended(batch, task))
        if batch.request is not None:
            # What the body gets for its use (a model) is in use until the batch has ended.
            batch.request.task = batch.task
        self._running.add(batch)
        if len(self._running) >= self.options.max_concurrent_batches:
            self._batcher.on_busy(now)
        self._num_running_calls += len(calls)

    def _on_ended(self, batch: Batch, task: asyncio.Task[None]) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._running.discard(batch)
        self._batcher.on_free(now)
        self._num_running_calls -= len(batch.calls)
        took_s = now - batch.started_at
        self._counters.ended(took_s)
        self._returns.on_answered(len(batch.calls), took_s, now)
        if task.cancelled():
            batch.fail(
                RemoraError(
                    f"{self.name} was cancelled from outside while it worked on a batch of "
                    f"{len(batch.calls)}; what it was working on has no result"
                )
            )
        elif (error := task.exception()) is not None:
            batch.fail(error)
        # A batch and its calls hold each other, and arguments may be large.
        batch.calls = []
        self._pump(0.0)
