"""A number that changes in steps, and what it was over a while.

Theory of operation: each step carries the integral up to its beginning, so that a mean needs two
look-ups however long the window is. Extremes look at each step in the window.

Rules: pure; time is an argument and goes forward.
"""

from __future__ import annotations

from bisect import bisect_right

from remora.types import Seconds

#: Steps closer than this are one: nobody decides on less.
RESOLUTION_S: Seconds = 0.01
#: Old steps are dropped in bulk, because dropping costs as much as what is kept.
_MANY = 512


class Timeline:
    """A right-continuous step function, remembered for as long as somebody may ask."""

    __slots__ = ("_sums", "_times", "_values")

    def __init__(self, now: Seconds, value: float = 0.0) -> None:
        self._times = [now]
        self._values = [value]
        self._sums = [0.0]

    @property
    def value(self) -> float:
        """The present value."""
        return self._values[-1]

    @property
    def changed_s(self) -> Seconds:
        """When the present value began."""
        return self._times[-1]

    def set(self, now: Seconds, value: float, keep_s: Seconds) -> None:
        """From `now` on it is `value`; what is older than `keep_s` may be forgotten."""
        times, values = self._times, self._values
        if value == values[-1]:
            return
        last = times[-1]
        if now - last < RESOLUTION_S:
            values[-1] = value
            return
        self._sums.append(self._sums[-1] + values[-1] * (now - last))
        times.append(now)
        values.append(value)
        if len(times) > _MANY and times[_MANY // 2] < now - keep_s:
            self._forget(now - keep_s)

    def _forget(self, before: Seconds) -> None:
        first = max(0, bisect_right(self._times, before) - 1)
        # Sums of years lose the digits that matter, so they begin anew.
        base = self._sums[first]
        self._times = self._times[first:]
        self._values = self._values[first:]
        self._sums = [total - base for total in self._sums[first:]]

    def _sum_at(self, at: Seconds) -> float:
        index = max(0, bisect_right(self._times, at) - 1)
        return self._sums[index] + self._values[index] * (at - self._times[index])

    def aggregate(self, how: str, start: Seconds, now: Seconds) -> float:
        """Say what it was from `start` to `now`: time-weighted `mean`, `max` or `min`. Pure.

        Before the first step it had the value of the first step. A window without length has the
        present value. Invariants: `min` <= `mean` <= `max`, up to rounding.
        """
        if now - start < RESOLUTION_S:
            return self._values[-1]
        if how == "mean":
            return (self._sum_at(now) - self._sum_at(start)) / (now - start)
        first = max(0, bisect_right(self._times, start) - 1)
        # A step that begins with the end of the window has no share in it.
        seen = [
            value
            for at, value in zip(self._times[first:], self._values[first:], strict=True)
            if at < now or at == self._times[first]
        ]
        return max(seen) if how == "max" else min(seen)

    def points(self, start: Seconds) -> list[tuple[Seconds, float]]:
        """The steps since `start`, the one that was in force then first. Pure."""
        first = max(0, bisect_right(self._times, start) - 1)
        return list(zip(self._times[first:], self._values[first:], strict=True))
