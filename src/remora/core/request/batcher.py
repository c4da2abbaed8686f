"""Which items wait to be worked on together, which of them make the next batch, and when.

Items that may not be mixed (another model, another shape) wait in buckets of their own. A batch is
the head of one bucket: as many items, in the order in which they came, as cost no more than the
maximum. What does not fit keeps its place and is the head of the next batch.

A batch is due when it is full, when its first item has waited for the limit (the time in which no
batch could start does not count), or when waiting longer is not worth it (`batch_wait`); without an
outlook, only for the first two reasons. The first batch that is due says *when* one starts. *Which*
one does is another question: also those take part whose first item has waited for the limit while
others ran, and the one whose first item has waited longest goes first. Otherwise a bucket that is
full whenever a batch ends would keep all others waiting for ever.

Rules: pure; time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from remora.core.request.batch_wait import NOTHING, Outlook, start_at
from remora.errors import USER_ERRORS
from remora.types import Seconds

T = TypeVar("T")

#: What a list of items costs together.
CostFn = Callable[[Sequence[T]], float]


class TooLargeError(ValueError):
    """An item costs more than a batch may."""

    def __init__(self, cost: float, max_cost: float) -> None:
        self.cost = cost
        self.max_cost = max_cost
        super().__init__(f"it costs {cost:g} and a batch at most {max_cost:g}")


class UnmeasurableError(Exception):
    """What items cost together cannot be told; the cause says why.

    Attributes:
        entry: the first of them; without it, the others may go on.
    """

    def __init__(self, entry: Entry[Any]) -> None:
        self.entry = entry
        super().__init__("the cost of these items cannot be told")


class Entry(Generic[T]):
    """A waiting item; two entries are never equal, whatever their items are.

    Attributes:
        item: whatever the caller waits with.
        bucket: only entries with an equal one may share a batch.
        added_at: when it came.
        busy_s: for how long no batch could start, until it came.
    """

    __slots__ = ("added_at", "bucket", "busy_s", "item")

    def __init__(self, item: T, bucket: Hashable, added_at: Seconds, busy_s: Seconds) -> None:
        self.item = item
        self.bucket = bucket
        self.added_at = added_at
        self.busy_s = busy_s


class Taken(NamedTuple, Generic[T]):
    """A batch.

    Attributes:
        entries: in the order in which they came.
        cost: of all together.
    """

    entries: list[Entry[T]]
    cost: float


class _Bucket(Generic[T]):
    """Entries in the order in which they came. `cost` is that of all together, if it is known."""

    __slots__ = ("cost", "entries")

    def __init__(self) -> None:
        self.entries: dict[Entry[T], None] = {}
        self.cost: float | None = None

    def first(self) -> Entry[T]:
        return next(iter(self.entries))


class Batcher(Generic[T]):
    """Items that wait for their batch.

    Args:
        max_size: what a batch may cost at most; without `cost_fn`, how many items it may have.
        max_wait_s: how long an item may wait before its batch is due.
        cost_fn: what items cost together; None: one each. It may raise: then nothing changes, and
            `add` raises the same.

    Invariants: every entry that was added is taken or cancelled once, or waits; a batch never
    costs more than `max_size`; within a bucket entries are taken in the order in which they came;
    of those that have waited for the limit, whatever else was going on, the oldest is taken first.

    Attributes:
        max_size, max_wait_s: as given; both may be changed at any time.
    """

    __slots__ = (
        "_buckets",
        "_busy_s",
        "_busy_since",
        "_cost_fn",
        "_num_waiting",
        "max_size",
        "max_wait_s",
    )

    def __init__(
        self, max_size: int, max_wait_s: Seconds, cost_fn: CostFn[T] | None = None
    ) -> None:
        self.max_size = max_size
        self.max_wait_s = max_wait_s
        # How long no batch could start, so far; and since when none can.
        self._busy_s: Seconds = 0.0
        self._busy_since: Seconds | None = None
        self._cost_fn = cost_fn
        # By insertion; a bucket that is empty is removed.
        self._buckets: dict[Hashable, _Bucket[T]] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def on_busy(self, now: Seconds) -> None:
        """From now on no batch can start: nobody waits for others meanwhile."""
        if self._busy_since is None:
            self._busy_since = now

    def on_free(self, now: Seconds) -> None:
        """A batch can start again."""
        self._busy_s = self._busy_until(now)
        self._busy_since = None

    def add(self, item: T, bucket: Hashable, now: Seconds) -> Entry[T]:
        """Let an item wait.

        Raises:
            TooLargeError: it alone costs more than a batch may.
        """
        if self._cost_fn is not None:
            self._require_fits(item)
        entry = Entry(item, bucket, now, self._busy_until(now))
        found = self._buckets.get(bucket)
        if found is None:
            found = self._buckets[bucket] = _Bucket()
        found.entries[entry] = None
        found.cost = None
        self._num_waiting += 1
        return entry

    def cancel(self, entry: Entry[T]) -> bool:
        """Take an item out that nobody waits for any more; False: it does not wait here."""
        found = self._buckets.get(entry.bucket)
        if found is None or entry not in found.entries:
            return False
        self._remove(found, entry.bucket, (entry,))
        return True

    def due_at(self, now: Seconds, outlook: Outlook | None = NOTHING) -> Seconds | None:
        """When the next batch is due if nothing happens; `now` or earlier: it is. None: never.

        Raises:
            UnmeasurableError: of a bucket whose cost cannot be told.
        """
        return min((self._due_at(b, now, outlook) for b in self._buckets.values()), default=None)

    def take(self, now: Seconds, outlook: Outlook | None = NOTHING) -> Taken[T] | None:
        """Take the batch whose turn it is, if one is due; None: none is.

        Raises:
            UnmeasurableError: of a bucket whose cost cannot be told; nothing is taken.
        """
        due_at = self.due_at(now, outlook)
        if due_at is None or due_at > now:
            return None
        _, name = min(
            (
                (bucket.first().added_at, name)
                for name, bucket in self._buckets.items()
                if bucket.first().added_at + self.max_wait_s <= now
                or self._due_at(bucket, now, outlook) <= now
            ),
            key=lambda each: each[0],
        )
        bucket = self._buckets[name]
        taken = self._head(bucket)
        self._remove(bucket, name, taken.entries)
        return taken

    def _busy_until(self, now: Seconds) -> Seconds:
        return self._busy_s + (0.0 if self._busy_since is None else now - self._busy_since)

    # -- one bucket -------------------------------------------------------------------------

    def _due_at(self, bucket: _Bucket[T], now: Seconds, outlook: Outlook | None) -> Seconds:
        num_waiting = len(bucket.entries)
        cost = self._cost(bucket)
        first = bucket.first()
        latest = first.added_at + self.max_wait_s + (self._busy_until(now) - first.busy_s)
        if cost >= self.max_size or latest <= now:
            return min(now, latest)
        if outlook is None:
            return latest
        # How many more of the same kind fit, and how many of those who come go here.
        room = (self.max_size - cost) * num_waiting / cost if cost > 0 else outlook.expected
        share = num_waiting / self._num_waiting
        mine = outlook._replace(expected=outlook.expected * share)
        return start_at(num_waiting, room, latest, mine, now)

    def _cost(self, bucket: _Bucket[T]) -> float:
        if self._cost_fn is None:
            return len(bucket.entries)
        if bucket.cost is None:
            bucket.cost = self._measure(list(bucket.entries))
        return bucket.cost

    def _measure(self, entries: list[Entry[T]]) -> float:
        assert self._cost_fn is not None
        try:
            return self._cost_fn([entry.item for entry in entries])
        except USER_ERRORS as error:  # Border: the function is the user's.
            raise UnmeasurableError(entries[0]) from error

    def _head(self, bucket: _Bucket[T]) -> Taken[T]:
        """The first entries, as many as fit. The first alone does, or it came before a change."""
        if self._cost_fn is None:
            entries = list(islice(bucket.entries, self.max_size))
            return Taken(entries, len(entries))
        if (cost := self._cost(bucket)) <= self.max_size:
            return Taken(list(bucket.entries), cost)
        taken: list[Entry[T]] = []
        cost = 0.0
        for entry in bucket.entries:
            together = self._measure([*taken, entry])
            if taken and together > self.max_size:
                break
            taken.append(entry)
            cost = together
        return Taken(taken, cost)

    def _require_fits(self, item: T) -> None:
        assert self._cost_fn is not None
        cost = self._cost_fn([item])
        if cost > self.max_size:
            raise TooLargeError(cost, self.max_size)

    def _remove(self, bucket: _Bucket[T], name: Hashable, entries: Iterable[Entry[T]]) -> None:
        for entry in entries:
            del bucket.entries[entry]
            self._num_waiting -= 1
        bucket.cost = None
        if not bucket.entries:
            del self._buckets[name]
