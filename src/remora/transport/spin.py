"""Waits for a quick answer without falling asleep.

Waking a sleeping process costs 25-50 µs on a virtual machine, and its caches are cold by then:
more than all the work of a small call. So a caller with one request under way looks for the
answer again and again for a moment, instead of sleeping at once, but only where that has paid:
after a miss it stops trying for a number of requests, doubling. A handler that computes for
longer than the moment therefore costs next to nothing, nor does a machine with one processor,
and a busy process never spins, because it never has only one request under way.

Precedent: the adaptive halt polling of the Linux hypervisor (`halt_poll_ns`), which grows and
shrinks its window in the same way.
"""

from __future__ import annotations

import asyncio
import time

from remora.types import Seconds

#: How long a caller looks for an answer before it sleeps.
SPIN_S: Seconds = 200e-6
#: After misses in a row, at most this many requests go by until the next try.
MAX_SKIP = 1024


class SpinPolicy:
    """Decides whether spinning is worth a try. Pure; invariants: 0 <= skip <= MAX_SKIP."""

    __slots__ = ("_penalty", "skip")

    def __init__(self) -> None:
        self.skip = 0
        self._penalty = 1

    def should_try(self) -> bool:
        """Ask before each request."""
        if self.skip:
            self.skip -= 1
            return False
        return True

    def hit(self) -> None:
        """The answer came while we looked."""
        self._penalty = 1

    def miss(self) -> None:
        """It did not."""
        self.skip = self._penalty
        self._penalty = min(self._penalty * 2, MAX_SKIP)


class Spinner:
    """Keeps one loop from sleeping while a lone request is under way."""

    __slots__ = ("_loop", "_policy", "_until", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._policy = SpinPolicy()
        self._waiting = False
        self._until = 0.0

    def begin(self) -> None:
        """A lone request was sent."""
        if not self._waiting and self._policy.should_try():
            self._waiting = True
            self._until = time.perf_counter() + SPIN_S
            self._loop.call_soon(self._look)

    def end(self) -> None:
        """Its answer is there."""
        if self._waiting:
            self._waiting = False
            self._policy.hit()

    def _look(self) -> None:
        if not self._waiting:
            return
        if time.perf_counter() >= self._until:
            self._waiting = False
            self._policy.miss()
            return
        self._loop.call_soon(self._look)
