"""Looking for an answer pays, or is given up quickly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.transport.spin import MAX_SKIP, SpinPolicy


def test_a_hit_keeps_it_trying() -> None:
    policy = SpinPolicy()
    for _ in range(10):
        assert policy.should_try()
        policy.hit()


def test_misses_in_a_row_make_tries_rare() -> None:
    policy = SpinPolicy()
    tries = 0
    for _ in range(10_000):
        if policy.should_try():
            tries += 1
            policy.miss()
    # Doubling pauses up to the limit: 11 tries to get there, then one in MAX_SKIP + 1.
    assert tries <= 11 + 10_000 // MAX_SKIP + 1


def test_a_hit_after_misses_makes_it_eager_again() -> None:
    policy = SpinPolicy()
    for _ in range(8):
        while not policy.should_try():
            pass
        policy.miss()
    while not policy.should_try():
        pass
    policy.hit()
    assert policy.should_try()
    policy.miss()
    assert policy.skip == 1


@given(st.lists(st.sampled_from(["try", "hit", "miss"]), max_size=60))
def test_the_pause_is_bounded(steps: list[str]) -> None:
    policy = SpinPolicy()
    for step in steps:
        if step == "try":
            policy.should_try()
        elif step == "hit":
            policy.hit()
        else:
            policy.miss()
        assert 0 <= policy.skip <= MAX_SKIP
