"""Proxies on one socket: nobody takes everything, and nobody waits for who does not come."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.accepting import PATIENCE, SLACK, Turns

counts = st.lists(st.integers(0, 1000), min_size=1, max_size=5)


@given(st.integers(0, 10**6))
def test_who_is_alone_always_accepts(mine: int) -> None:
    assert Turns().may_accept(mine, [])


@given(st.integers(0, 1000), counts)
def test_who_has_more_than_another_lets_it_go_first(mine: int, others: list[int]) -> None:
    assert Turns().may_accept(mine, others) is (mine < min(others) + SLACK)


@given(st.integers(0, 1000), counts)
def test_nobody_waits_for_long_for_who_does_not_move(mine: int, others: list[int]) -> None:
    turns = Turns()
    moments = accepted = 0
    while accepted < 1000:
        if turns.may_accept(mine, others):
            mine += 1
            accepted += 1
        else:
            turns.resume(others)
            moments += 1
    assert moments <= PATIENCE + 11


def test_who_moves_again_is_waited_for_again() -> None:
    turns = Turns()
    for _ in range(PATIENCE):
        assert not turns.may_accept(10, [3])
        turns.resume([3])
    assert turns.may_accept(10, [3])
    assert not turns.may_accept(11, [3])
    turns.resume([4])
    assert not turns.may_accept(11, [4])


@given(st.integers(2, 5), st.integers(1, 200), st.randoms(use_true_random=False))
def test_a_burst_is_spread_evenly_over_those_who_are_awake(
    number: int, burst: int, rng: random.Random
) -> None:
    """Each proxy takes what it may when it is woken, in any order, all of them in each round."""
    proxies = [Turns() for _ in range(number)]
    have = [0] * number
    while burst:
        for i in rng.sample(range(number), number):
            others = have[:i] + have[i + 1 :]
            proxies[i].resume(others)
            while burst and proxies[i].may_accept(have[i], others):
                have[i] += 1
                burst -= 1
    assert max(have) - min(have) <= SLACK
