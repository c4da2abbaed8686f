"""Whatever comes and goes: order, size, wait, and nothing lost or doubled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from remora.core.request.batch_wait import NOTHING, Outlook, Returns, start_at
from remora.core.request.batcher import Batcher, CostFn, Entry, TooLargeError

#: An item is (number, bucket, cost).
Item = tuple[int, int, int]
seconds = st.floats(0, 0.05, allow_nan=False)


def padded_cost(items: Sequence[Item]) -> int:
    """As many as there are, each as long as the longest: not a sum."""
    return len(items) * max(item[2] for item in items)


class BatcherMachine(RuleBasedStateMachine):
    """Compares a batcher with plain lists."""

    cost_fn: CostFn[Item] | None = staticmethod(padded_cost)
    adaptive = True

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.batcher: Batcher[Item] = Batcher(6, 0.01, self.cost_fn)
        self.waiting: list[Entry[Item]] = []
        self.gone: set[int] = set()
        self.number = 0
        self.outlook: Outlook | None = NOTHING if self.adaptive else None
        self.is_busy = False
        #: How long a batch could start, so far; and how long it could when an entry came.
        self.free_s = 0.0
        self.free_s_at: dict[Entry[Item], float] = {}

    def cost(self, entries: Sequence[Entry[Item]]) -> float:
        items = [entry.item for entry in entries]
        return len(items) if self.cost_fn is None else self.cost_fn(items)

    @rule(bucket=st.integers(0, 2), cost=st.integers(1, 8))
    def add(self, bucket: int, cost: int) -> None:
        self.number += 1
        item = (self.number, bucket, cost)
        fits = self.cost_fn is None or self.cost_fn([item]) <= self.batcher.max_size
        try:
            entry = self.batcher.add(item, bucket, self.now)
            self.waiting.append(entry)
            self.free_s_at[entry] = self.free_s
        except TooLargeError:
            assert not fits
        else:
            assert fits

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        assert self.batcher.cancel(entry)
        assert not self.batcher.cancel(entry)
        self.waiting.remove(entry)
        self.gone.add(entry.item[0])

    @rule(passed=seconds)
    def wait(self, passed: float) -> None:
        self.now += passed
        if not self.is_busy:
            self.free_s += passed

    @rule()
    def busy(self) -> None:
        self.is_busy = True
        self.batcher.on_busy(self.now)

    @precondition(lambda self: self.is_busy)
    @rule()
    def free(self) -> None:
        self.is_busy = False
        self.batcher.on_free(self.now)

    @rule(expected=st.floats(0, 20), soon=seconds, run_s=seconds, item_s=seconds)
    def look(self, expected: float, soon: float, run_s: float, item_s: float) -> None:
        if self.adaptive:
            self.outlook = Outlook(expected, self.now + soon, run_s, item_s)

    @precondition(lambda self: not self.is_busy)
    @rule()
    def take(self) -> None:
        due_at = self.batcher.due_at(self.now, self.outlook)
        oldest = min((e.added_at for e in self.waiting), default=None)
        taken = self.batcher.take(self.now, self.outlook)
        if taken is None:
            assert due_at is None or due_at > self.now
            # Nobody waits longer than the limit, in all the time in which a batch could start.
            for entry in self.waiting:
                assert self.free_s - self.free_s_at[entry] < self.batcher.max_wait_s + 1e-9
            return
        assert due_at is not None
        assert due_at <= self.now
        entries = taken.entries
        # Whatever else is due or full: who has waited for the limit waits for nobody younger.
        assert oldest is not None
        if oldest + self.batcher.max_wait_s <= self.now:
            assert entries[0].added_at == oldest
        bucket = entries[0].bucket
        same = [entry for entry in self.waiting if entry.bucket == bucket]
        assert entries == same[: len(entries)]
        assert taken.cost == self.cost(entries) <= self.batcher.max_size
        # It was closed for a reason: the next of its kind would have been too much.
        if len(same) > len(entries):
            assert self.cost(same[: len(entries) + 1]) > self.batcher.max_size
        assert not {entry.item[0] for entry in entries} & self.gone
        for entry in entries:
            self.waiting.remove(entry)
            self.gone.add(entry.item[0])

    @rule()
    def take_everything_that_has_waited(self) -> None:
        """Beyond the limit nothing stays, and the oldest goes first."""
        if not self.waiting:
            return
        if self.is_busy:
            self.free()
        self.free_s += self.batcher.max_wait_s * 1.001
        self.now += self.batcher.max_wait_s * 1.001
        firsts = []
        while (taken := self.batcher.take(self.now, self.outlook)) is not None:
            firsts.append(taken.entries[0].added_at)
            for entry in taken.entries:
                self.waiting.remove(entry)
                self.gone.add(entry.item[0])
        assert self.waiting == []
        assert firsts == sorted(firsts)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.batcher) == len(self.waiting)


class CountingMachine(BatcherMachine):
    cost_fn = None


class AlwaysWaitingMachine(BatcherMachine):
    adaptive = False


TestBatcherWithCosts = BatcherMachine.TestCase
TestBatcherThatCounts = CountingMachine.TestCase
TestBatcherThatAlwaysWaits = AlwaysWaitingMachine.TestCase


@given(
    st.integers(1, 50),
    st.floats(0, 50),
    seconds,
    st.floats(0, 100),
    st.floats(-0.05, 0.05),
    seconds,
)
def test_a_start_is_never_later_than_the_latest_nor_than_what_is_expected(
    num: int, room: float, latest: float, expected: float, until: float, run_s: float
) -> None:
    at = start_at(num, room, 1000 + latest, Outlook(expected, 1000 + until, run_s), 1000.0)
    assert at <= max(1000.0, 1000 + latest)
    assert at <= max(1000.0, 1000 + until)
    if expected == 0 or room == 0 or run_s == 0:
        assert at <= 1000.0


@given(st.lists(st.tuples(st.sampled_from(("come", "answer")), seconds, st.integers(0, 9))))
def test_a_share_stays_a_share_and_no_more_are_expected_than_were_answered(
    history: list[tuple[str, float, int]],
) -> None:
    returns = Returns(0.01)
    now, answered = 1000.0, 0
    for what, passed, num in history:
        now += passed
        if what == "come":
            returns.on_arrival(now)
        else:
            returns.on_answered(num, passed, now)
            answered += num
        outlook = returns.outlook(now)
        assert 0 <= returns.share <= 1
        assert 0 <= outlook.expected <= answered
        assert outlook.until <= now + returns.window_s


def closed_loop(num_callers: int, think_s: float) -> Returns:
    """Callers who come back `think_s` after their answer, one after the other, again and again."""
    returns = Returns(0.01)
    now = 1000.0
    for _ in range(200):
        now += 0.005
        returns.on_answered(num_callers, 0.005, now)
        for _ in range(num_callers):
            now += think_s
            returns.on_arrival(now)
    return returns


@given(st.integers(1, 30), st.floats(0.00001, 0.0003))
def test_callers_who_always_come_back_are_expected(num_callers: int, think_s: float) -> None:
    returns = closed_loop(num_callers, think_s)
    now = 2000.0
    returns.on_answered(num_callers, 0.005, now)
    outlook = returns.outlook(now)
    assert outlook.expected > 0.99 * num_callers
    assert outlook.until - now >= num_callers * think_s / 2


@given(
    st.floats(0.0001, 0.01),
    st.floats(0.00001, 0.001),
    st.lists(st.integers(1, 32), min_size=40, max_size=60),
)
def test_what_a_batch_takes_and_what_an_item_does_is_told_apart(
    run_s: float, item_s: float, sizes: list[int]
) -> None:
    returns = Returns(0.01)
    for num in (*sizes, 1, 32):
        returns.on_answered(num, run_s + num * item_s, 1000.0)
    outlook = returns.outlook(1000.0)
    assert outlook.run_s == pytest.approx(run_s, rel=0.01, abs=1e-6)
    assert outlook.item_s == pytest.approx(item_s, rel=0.01)


def test_batches_of_one_size_say_nothing_of_their_items() -> None:
    returns = Returns(0.01)
    for num in (2, 8, 2, *[8] * 200):
        returns.on_answered(num, 0.001 + num * 0.0005, 1000.0)
    assert returns.outlook(1000.0)[2:] == pytest.approx((0.001, 0.0005), rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 64), seconds), min_size=1))
def test_whatever_runs_take_no_time_is_negative(runs: list[tuple[int, float]]) -> None:
    returns = Returns(0.01)
    for num, run_s in runs:
        returns.on_answered(num, run_s, 1000.0)
    outlook = returns.outlook(1000.0)
    assert outlook.run_s >= -1e-12
    assert outlook.item_s >= 0.0


def test_a_lone_caller_waits_for_nobody() -> None:
    returns = closed_loop(1, 0.0002)
    returns.on_answered(1, 0.005, 2000.0)
    returns.on_arrival(2000.0002)
    assert returns.outlook(2000.0002).expected == 0


def test_callers_who_stay_away_are_not_expected_for_long() -> None:
    returns = closed_loop(10, 0.0002)
    now = 2000.0
    for _ in range(50):
        now += 0.02
        returns.on_answered(10, 0.005, now)
    assert returns.outlook(now).expected < 0.1
