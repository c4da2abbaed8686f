"""The queue of a router: first come, first served, and who gets a slot that is free."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from remora.core.request import look
from remora.router.backlog import Backlog
from remora.router.call import Call, CallState
from remora.router.pinned_queue import MAX_GIVEN_UP

if TYPE_CHECKING:
    from remora.router.router import Router

# A member of an enumeration is slow to look up.
_QUEUED = CallState.QUEUED


class Waiting:
    """Calls that no replica has yet and any may take.

    Attributes:
        num: how many; those given up are in the queue for a while, and not counted.
        backlog: share, pace and refusals of this queue.
    """

    __slots__ = ("_calls", "_full_look", "_router", "backlog", "num")

    def __init__(self, router: Router) -> None:
        """Make a queue.

        Args:
            router: asked which replica suits a call, and told to send it there.
        """
        self._router = router
        self._calls: deque[Call] = deque()
        self._full_look: asyncio.TimerHandle | None = None
        self.num = 0
        self.backlog = Backlog(router.loop, router.counts)

    def calls(self) -> Iterator[Call]:
        """Those that wait, the oldest first; look at as few as you need."""
        return (call for call in self._calls if call.state is _QUEUED)

    def add(self, call: Call) -> None:
        """Let a new call wait."""
        call.state = _QUEUED
        self._calls.append(call)
        self.num += 1
        self.backlog.on_joined(self.num)

    def put_back(self, call: Call) -> None:
        """Let a call wait again, in its old place: several may come back in any order."""
        call.state = _QUEUED
        call.link = None
        index = 0
        for other in self._calls:
            if other.sequence > call.sequence:
                break
            index += 1
        self._calls.insert(index, call)
        self.num += 1
        self.backlog.on_joined(self.num)

    def on_abandoned(self) -> None:
        """A waiting call was given up; its place is skipped when it comes up."""
        self.num -= 1
        self.backlog.on_left(self.num)
        # Calls given up must not hold memory behind a queue that does not move.
        if len(self._calls) > 2 * self.num + MAX_GIVEN_UP:
            self._calls = deque(c for c in self._calls if c.state is _QUEUED)

    def refuse_last(self) -> None:
        """Refuse the call that came last."""
        route = self._router.route
        assert route is not None
        while (call := self._calls.pop()).state is not _QUEUED:
            pass
        self.num -= 1
        call.fail(self.backlog.refuse(route, self.num))
        self.backlog.on_left(self.num)

    def fail_all(self, error: Exception) -> None:
        """Nobody will ever take what waits."""
        calls, self._calls = self._calls, deque()
        self.num = 0
        self.backlog.on_left(0)
        for call in calls:
            if call.state is _QUEUED:
                call.fail(error)

    def pump(self, *, everything: bool = False) -> None:
        """Offer the calls to what is open; `everything`: however many decline it."""
        router = self._router
        calls, candidates = self._calls, router.members.open
        before = self.num
        #: Those that rather wait; others behind them need not.
        passed_over: list[Call] = []
        #: Their models, where only the model counts: nobody need ask for the next of them.
        models: set[str] = set()
        choose, rng, send = router.choose, router.rng, router.send
        most = self._most_passed_over(everything)
        while calls and candidates:
            call = calls.popleft()
            if call.state is not _QUEUED:
                continue
            if not models or call.envelope.multiplexed_model_id not in models:
                link = choose(call.envelope, candidates, rng)
                if link is not None:
                    self.num -= 1
                    send(call, link)
                    continue
                if router.policy.waits_by_model:
                    models.add(call.envelope.multiplexed_model_id)
            passed_over.append(call)
            if look.is_over(len(passed_over), len(models), most):
                break
        if passed_over:
            if look.needs_full_look(len(passed_over), most, is_asked=router.custom is not None):
                self._look_at_all_soon()
            calls.extendleft(reversed(passed_over))
        if self.num < before:
            self.backlog.on_sent(before - self.num, self.num)
        if not self.num:
            calls.clear()

    def _most_passed_over(self, everything: bool) -> int:
        num_queued = len(self._calls)
        if everything:
            return num_queued
        custom = self._router.custom
        return look.most_passed_over(
            num_queued,
            self._router.policy.waits_by_model,
            custom.num_asked if custom is not None else None,
        )

    def _look_at_all_soon(self) -> None:
        if self._full_look is None:
            self._full_look = self._router.loop.call_later(look.FULL_LOOK_S, self._look_at_all)

    def _look_at_all(self) -> None:
        self._full_look = None
        self.pump(everything=True)
