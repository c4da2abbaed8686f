"""What the user's code counts in one replica, by `remora.metrics`.

A row for each metric and each set of tag values, written by any thread, read when somebody asks.
Both are bounded: a tag that has a new value for each request would fill the memory otherwise.

Rules: knows no replica and no request; who writes and who reads says whose the rows are.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from remora.observe.counters import OTHER
from remora.wire.metrics import Family

_log = logging.getLogger("remora.replica")

#: Sets of tag values of one metric, and of all metrics of a replica.
MAX_ROWS_OF_ONE = 1_000
MAX_ROWS = 10_000
#: Metrics of one replica.
MAX_METRICS = 500


@dataclass(frozen=True)
class Declaration:
    """What a metric is.

    Attributes:
        name: as Prometheus knows it, without `_total`.
        kind: `counter`, `gauge` or `histogram`.
        tag_keys: names of its tags.
        bounds: upper bounds of a histogram's buckets, rising.
        text: what it means, for people.
    """

    name: str
    kind: str
    tag_keys: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    text: str = ""

    def agrees(self, other: Declaration) -> bool:
        """Whether both are the same metric; only the text may differ. Pure."""
        return (self.kind, self.tag_keys, self.bounds) == (other.kind, other.tag_keys, other.bounds)

    def __str__(self) -> str:
        tags = f" with the tags {', '.join(self.tag_keys)}" if self.tag_keys else " without tags"
        return f"{self.kind}{tags}{f' and the boundaries {self.bounds}' if self.bounds else ''}"


class Rows:
    """One metric of one replica.

    Attributes:
        declaration: what it is.
        lock: held by whoever writes or reads a row; one for all of a replica.
        by_tags: rows by the values of the tags, as in `wire.metrics.Family`.
    """

    __slots__ = ("_is_kept", "_owner", "_warned", "by_tags", "declaration", "lock")

    def __init__(self, declaration: Declaration, owner: UserMetrics, *, is_kept: bool) -> None:
        self.declaration = declaration
        self.lock = owner.lock
        self.by_tags: dict[tuple[str, ...], list[float]] = {}
        self._owner = owner
        self._is_kept = is_kept
        self._warned = False

    def new(self, key: tuple[str, ...]) -> list[float] | None:
        """Make the row of tag values that had none; None: there is no room. Holds the lock."""
        if not self._is_kept:
            return None
        safe = tuple(_encodable(value) for value in key)
        found = self.by_tags.get(safe)
        if found is not None:
            return found
        if len(self.by_tags) >= MAX_ROWS_OF_ONE or self._owner.num_rows >= MAX_ROWS:
            self._warn(safe)
            if self.declaration.kind == "gauge":
                # The last one of many different things says nothing.
                return None
            safe = (OTHER,) * len(safe)
            if safe in self.by_tags:
                return self.by_tags[safe]
        self._owner.num_rows += 1
        bounds = self.declaration.bounds
        row = self.by_tags[safe] = [0.0] * (len(bounds) + 2 if bounds else 1)
        return row

    def _warn(self, key: tuple[str, ...]) -> None:
        if self._warned:
            return
        self._warned = True
        tags = dict(zip(self.declaration.tag_keys, key, strict=True))
        _log.warning(
            "Metric %s has %d sets of tag values (all of this replica have %d): new ones, such as "
            "%s, are %s. A tag is for values of which there are few. Said once.",
            self.declaration.name,
            len(self.by_tags),
            self._owner.num_rows,
            {name: value[:100] for name, value in tags.items()},
            "left out" if self.declaration.kind == "gauge" else f"counted as {OTHER!r}",
        )


class UserMetrics:
    """All metrics of the user's code in one replica, or in a process that is none.

    Attributes:
        lock: held by whoever writes or reads.
        num_rows: of all metrics.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_rows = 0
        self._metrics: dict[str, Rows] = {}
        self._warned = False

    def declared(self, wanted: Declaration) -> Rows:
        """Where a metric is kept; those with one name are one metric.

        Raises:
            ValueError: one of this name is another metric.
        """
        with self.lock:
            found = self._metrics.get(wanted.name)
            if found is None:
                has_room = len(self._metrics) < MAX_METRICS
                found = Rows(wanted, self, is_kept=has_room)
                if has_room:
                    self._metrics[wanted.name] = found
                elif not self._warned:
                    self._warned = True
                    _log.warning(
                        "This replica has %d metrics: %s and further ones are not kept. Names are "
                        "for kinds of things; what differs belongs into tags. Said once.",
                        MAX_METRICS,
                        wanted.name,
                    )
        if not wanted.agrees(found.declaration):
            raise ValueError(
                f"Metric {wanted.name!r} is declared twice: as a {found.declaration}, and as a "
                f"{wanted}. Give one of them another name."
            )
        return found

    def forget(self, name: str) -> None:
        """Drop a metric, with what was counted."""
        with self.lock:
            found = self._metrics.pop(name, None)
            if found is not None:
                self.num_rows -= len(found.by_tags)

    def families(
        self, labels: tuple[str, ...], values: tuple[str, ...], *, lasting: bool = False
    ) -> list[Family]:
        """Everything that was counted.

        Args:
            labels: put in front of the tags.
            values: of those labels.
            lasting: only what still means something when the replica has ended: no gauges.
        """
        with self.lock:
            return [
                Family(
                    name=name,
                    kind=each.declaration.kind,
                    labels=(*labels, *each.declaration.tag_keys),
                    rows={(*values, *key): list(row) for key, row in each.by_tags.items()},
                    bounds=each.declaration.bounds,
                    text=_encodable(each.declaration.text),
                    by_user=True,
                )
                for name, each in self._metrics.items()
                if each.by_tags and not (lasting and each.declaration.kind == "gauge")
            ]


def _encodable(value: str) -> str:
    """A text that can travel: not every one that Python can hold does."""
    return value.encode(errors="replace").decode()


#: Of a process that is no replica: kept, and shown to nobody.
OUTSIDE = UserMetrics()
