"""How soon a queue that is full now will have moved on: the number in `Retry-After`.

Time counts only while something waits: an idle hour says nothing about how fast a queue drains.
Two windows follow each other, so that what is said rests on the last seconds and not on the
whole life of a deployment.

Rules: pure; `now` is an argument, from any clock that only goes forward.
"""

from __future__ import annotations

import math

from remora.types import Seconds

#: Busy time after which a window is replaced by the next one.
WINDOW_S: Seconds = 5.0
#: What a client is told lies between these.
SHORTEST_S = 1
LONGEST_S = 60


class DrainRate:
    """Counts what leaves a queue, and the time during which it was not empty.

    Invariants: counts and times are >= 0; the answer is a whole number in
    SHORTEST_S..LONGEST_S, grows with the number that waits, and depends on differences of time only.
    """

    __slots__ = ("_before", "_drained", "_gathered_s", "_since")

    def __init__(self) -> None:
        self._drained = 0
        #: Busy seconds of this window, without those that run.
        self._gathered_s: Seconds = 0.0
        #: Since when something waits; None: nothing does.
        self._since: Seconds | None = None
        #: Drained and busy seconds of the window before.
        self._before = (0, 0.0)

    def begin(self, now: Seconds) -> None:
        """Something waits from now on."""
        if self._since is None:
            self._since = now

    def drain(self, now: Seconds, num: int = 1) -> None:
        """Of those that waited `num` have gone to a replica."""
        self._drained += num
        if self._busy_s(now) >= WINDOW_S:
            self._before = (self._drained, self._busy_s(now))
            self._drained = 0
            self._gathered_s = 0.0
            if self._since is not None:
                self._since = now

    def end(self, now: Seconds) -> None:
        """Nothing waits any more."""
        self._gathered_s = self._busy_s(now)
        self._since = None

    def retry_after_s(self, num_queued: int, now: Seconds) -> int:
        """Seconds until a queue of that length has drained, as far as can be said.

        One more than was seen is taken to have drained: with nothing seen yet the answer is short
        at first, and grows for as long as nothing moves.
        """
        drained, busy_s = self._before
        drained += self._drained + 1
        busy_s += self._busy_s(now)
        return min(LONGEST_S, max(SHORTEST_S, math.ceil(num_queued * busy_s / drained)))

    def _busy_s(self, now: Seconds) -> Seconds:
        return self._gathered_s + (0.0 if self._since is None else max(0.0, now - self._since))
