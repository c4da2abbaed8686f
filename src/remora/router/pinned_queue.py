"""The calls that wait for one replica and take no other."""

from __future__ import annotations

from collections import deque

from remora.router.call import Call, CallState

#: So many calls that were given up may stay in a queue beside as many as wait in it.
MAX_GIVEN_UP = 64


class PinnedQueue:
    """First come, first served.

    Attributes:
        num_waiting: calls that wait; those given up are in the queue for a while, and not counted.
    """

    __slots__ = ("_calls", "num_waiting")

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self.num_waiting = 0

    def add(self, call: Call) -> None:
        """Let a call wait."""
        call.state = CallState.QUEUED
        call.link = None
        self._calls.append(call)
        self.num_waiting += 1

    def take(self) -> Call | None:
        """Take the call that has waited longest; None: none waits."""
        while self._calls:
            call = self._calls.popleft()
            if call.state is CallState.QUEUED:
                self.num_waiting -= 1
                return call
        return None

    def on_abandoned(self) -> None:
        """A call that waits here was given up."""
        self.num_waiting -= 1
        if len(self._calls) > 2 * self.num_waiting + MAX_GIVEN_UP:
            self._calls = deque(c for c in self._calls if c.state is CallState.QUEUED)
