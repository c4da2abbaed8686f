"""Waits for the other end of a connection without falling asleep.

Waking a sleeping process costs 25-50 µs on a virtual machine, and its caches are cold by then:
more than all the work of a small call. So who waits for the other end of a lone request looks
again and again for a moment, instead of sleeping at once, but only where that pays: not while
more processes want to run than there are processors, and after a miss not for a number of
requests, doubling. A handler that computes for longer than the moment therefore costs next to
nothing, and a busy process never spins, because it never has only one request under way.

Precedent: the adaptive halt polling of the Linux hypervisor (`halt_poll_ns`), which grows and
shrinks its window in the same way.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time

from remora.types import Seconds

#: How long to look before going to sleep.
SPIN_S: Seconds = 200e-6
#: After misses in a row, at most this many requests go by until the next try.
MAX_SKIP = 1024
#: Looks between two questions to the kernel who else wants to run: one is 2 µs, the other 3.
_LOOKS_PER_QUESTION = 4


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
        """What was waited for came while we looked."""
        self._penalty = 1

    def miss(self) -> None:
        """It did not."""
        self.skip = self._penalty
        self._penalty = min(self._penalty * 2, MAX_SKIP)


class _Processors:
    """Asks the kernel how many processes want to run, against how many may."""

    def __init__(self) -> None:
        self._count = os.cpu_count() or 1
        try:
            self._file: int | None = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = None

    def are_short(self) -> bool:
        """More processes want to run than there are processors (or nobody can tell)."""
        if self._file is None:
            return True
        # "0.00 0.01 0.05 2/123 4567": the fourth word begins with those that want to run.
        running = os.pread(self._file, 64, 0).split(b" ", 4)[3]
        return int(running[: running.index(b"/")]) > self._count


@functools.cache
def _processors() -> _Processors:
    """One for the process, opened by its first spinner."""
    return _Processors()


class Spinner:
    """Keeps one loop from sleeping for a moment."""

    __slots__ = ("_looks", "_loop", "_policy", "_processors", "_until", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._processors = _processors()
        self._policy = SpinPolicy()
        self._waiting = False
        self._until = 0.0
        self._looks = 0

    def begin(self) -> None:
        """Something is waited for."""
        if not self._waiting and self._policy.should_try():
            self._waiting = True
            self._looks = 0
            self._until = time.perf_counter() + SPIN_S
            self._loop.call_soon(self._look)

    def end(self) -> None:
        """It is there."""
        if self._waiting:
            self._waiting = False
            self._policy.hit()

    def _look(self) -> None:
        if not self._waiting:
            return
        self._looks += 1
        if time.perf_counter() >= self._until or (
            self._looks % _LOOKS_PER_QUESTION == 1 and self._processors.are_short()
        ):
            self._waiting = False
            self._policy.miss()
            return
        self._loop.call_soon(self._look)
