"""Routers and a full replica come together again: nobody waits beside a free slot."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from remora.core.request.room import (
    asks_for_room,
    is_called_back,
    limit_called_back,
    limit_turned_away,
)

counts = st.integers(0, 20)


@given(counts, counts, st.integers(1, 20), st.integers(1, 20))
def test_a_call_raises_the_limit_and_never_above_that_of_the_replica(
    limit: int, outstanding: int, room: int, max_ongoing: int
) -> None:
    raised = limit_called_back(limit, outstanding, room, max_ongoing)
    assert raised >= limit
    assert raised <= max(limit, max_ongoing)
    assert raised >= min(outstanding + 1, max_ongoing)


@given(counts, counts, st.integers(1, 20))
def test_who_may_use_all_of_a_replica_asks_for_nothing(
    outstanding: int, limit: int, max_ongoing: int
) -> None:
    if asks_for_room(outstanding, limit, max_ongoing):
        assert limit < max_ongoing
        assert outstanding + 1 >= limit


class Caller:
    """A router with a queue, and what is on its way to the replica and back."""

    def __init__(self, max_ongoing: int) -> None:
        self.waiting = self.outstanding = 0
        self.max_ongoing = self.limit = max_ongoing
        self.full = False
        self.up: deque[bool] = deque()
        self.down: deque[tuple[str, int]] = deque()
        self.was_rejected = False

    def pump(self) -> None:
        while self.waiting and not self.full and self.outstanding < self.limit:
            self.waiting -= 1
            self.up.append(asks_for_room(self.outstanding, self.limit, self.max_ongoing))
            self.outstanding += 1

    def hear(self) -> None:
        if not self.down:
            return
        what, room = self.down.popleft()
        if what == "freed":
            self.limit = limit_called_back(self.limit, self.outstanding, room, self.max_ongoing)
            self.full = False
        else:
            self.outstanding -= 1
            self.full = what == "reject"
            if self.full:
                self.waiting += 1
                self.limit = limit_turned_away(self.outstanding)
        self.pump()


class World:
    """A replica and its callers; messages arrive in order on each connection, and at any time."""

    def __init__(self, max_ongoing: int) -> None:
        self.max_ongoing = max_ongoing
        self.running: list[Caller] = []
        self.callers = [Caller(max_ongoing) for _ in range(3)]
        self.turned_away: set[Caller] = set()

    def arrive(self, number: int) -> None:
        self.callers[number].waiting += 1
        self.callers[number].pump()

    def take(self, number: int) -> None:
        caller = self.callers[number]
        if not caller.up:
            return
        asks = caller.up.popleft()
        if len(self.running) < self.max_ongoing:
            self.running.append(caller)
        else:
            self.turned_away.add(caller)
            caller.was_rejected = True
            caller.down.append(("reject", 0))
        if asks:
            self.turned_away.add(caller)
            self.call_back(None)

    def end(self, number: int) -> None:
        if self.running:
            caller = self.running.pop(number % len(self.running))
            caller.down.append(("answer", 0))
            self.call_back(caller)

    def call_back(self, answered: Caller | None) -> None:
        room = self.max_ongoing - len(self.running)
        if room < 1:
            return
        for caller in list(self.turned_away):
            if is_called_back(
                room, has_answer=caller is answered, was_turned_away=caller.was_rejected
            ):
                caller.was_rejected = False
                caller.down.append(("freed", room))
                self.turned_away.discard(caller)

    def hear(self, number: int) -> None:
        self.callers[number].hear()

    def deliver(self) -> None:
        while any(caller.up or caller.down for caller in self.callers):
            for number in range(len(self.callers)):
                self.take(number)
                self.hear(number)


moves = st.lists(
    st.tuples(st.sampled_from(("arrive", "arrive", "take", "hear", "end")), st.integers(0, 2)),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), moves)
def test_nobody_waits_while_there_is_room_and_all_are_served(
    max_ongoing: int, some: list[tuple[str, int]]
) -> None:
    world = World(max_ongoing)
    for move, number in some:
        getattr(world, move)(number)
    world.deliver()
    while True:
        if len(world.running) < max_ongoing:
            assert [caller.waiting for caller in world.callers] == [0, 0, 0]
        if not world.running:
            break
        world.end(0)
        world.deliver()
    assert [caller.outstanding for caller in world.callers] == [0, 0, 0]
