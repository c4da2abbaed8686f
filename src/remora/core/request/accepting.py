"""Whose turn it is to accept a connection, where several proxies share one listening socket.

The kernel wakes all of them, and who is quickest would take a whole burst (seen: 64 connections to
one of two proxies). So a proxy with more connections than another one waits for a moment before
it takes the next. When nobody else has moved after a few such moments (the other one is busy,
stopped or dead) it takes some all the same, each time twice as many: a connection is delayed by
milliseconds at worst, and a burst of them by little more.

Rules: pure.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Connections that a proxy may have more than the one with the fewest.
SLACK = 2
#: Moments for which the others are waited for in a row.
PATIENCE = 4


class Turns:
    """What one proxy decides from the numbers of connections."""

    __slots__ = ("_in_vain", "_left", "_seen")

    def __init__(self) -> None:
        #: Moments in a row after which nobody had moved.
        self._in_vain = 0
        #: Connections that are accepted without looking at the others.
        self._left = 0
        #: The numbers of the others when this one let them go first; None: it does not.
        self._seen: tuple[int, ...] | None = None

    def may_accept(self, mine: int, others: Sequence[int]) -> bool:
        """Whether to take the next connection now; if not: let others go first for a moment.

        Args:
            mine: connections of this proxy, those that it is about to open included.
            others: those of each other proxy.
        """
        if not others or mine - min(others) < SLACK:
            self._left = 0
            self._seen = None
            return True
        if self._left:
            self._left -= 1
            return True
        self._seen = tuple(others)
        return False

    def resume(self, others: Sequence[int]) -> None:
        """The moment is over. When nobody has moved, waiting for them is of no use."""
        if self._seen is None:
            return
        self._in_vain = self._in_vain + 1 if tuple(others) == self._seen else 0
        late = self._in_vain - PATIENCE
        self._left = 1 << min(late, 10) if late >= 0 else 0
        self._seen = None
