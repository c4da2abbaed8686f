"""What `Retry-After` says: positive, bounded, more for longer queues, blind to the time of day."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.drain_rate import LONGEST_S, SHORTEST_S, WINDOW_S, DrainRate

#: Sixteenths of a second: sums of them are exact, wherever the clock starts.
_ticks = st.integers(0, 2000).map(lambda ticks: ticks / 16)
_events = st.lists(st.tuples(st.sampled_from(("begin", "drain", "end")), _ticks), max_size=60)
_lengths = st.integers(0, 10_000)


def after(events: list[tuple[str, float]], start: float = 0.0) -> tuple[DrainRate, float]:
    rate, now = DrainRate(), start
    for name, later in events:
        now += later
        getattr(rate, name)(now)
    return rate, now


@given(_events, _lengths)
def test_is_a_whole_number_of_seconds_within_bounds(
    events: list[tuple[str, float]], length: int
) -> None:
    rate, now = after(events)
    said = rate.retry_after_s(length, now)
    assert isinstance(said, int)
    assert SHORTEST_S <= said <= LONGEST_S


@given(_events, _lengths, _lengths)
def test_a_longer_queue_waits_no_shorter(
    events: list[tuple[str, float]], one: int, other: int
) -> None:
    rate, now = after(events)
    short, long = sorted((one, other))
    assert rate.retry_after_s(short, now) <= rate.retry_after_s(long, now)


@given(_events, _lengths, st.integers(0, 2**40))
def test_depends_on_differences_of_time_alone(
    events: list[tuple[str, float]], length: int, shift: int
) -> None:
    rate, now = after(events)
    later, then = after(events, float(shift))
    assert rate.retry_after_s(length, now) == later.retry_after_s(length, then)


@given(_events, _lengths, _ticks)
def test_says_more_for_as_long_as_nothing_moves(
    events: list[tuple[str, float]], length: int, later: float
) -> None:
    rate, now = after([*events, ("begin", 0.0)])
    assert rate.retry_after_s(length, now) <= rate.retry_after_s(length, now + later)


@given(st.integers(1, 50), st.integers(1, 200))
def test_a_steady_queue_is_told_its_length_over_its_rate(per_second: int, length: int) -> None:
    rate = DrainRate()
    rate.begin(0.0)
    count = int(4 * WINDOW_S * per_second)
    for i in range(1, count + 1):
        rate.drain(i / per_second)
    said = rate.retry_after_s(length, count / per_second)
    expected = length / per_second
    assert min(LONGEST_S, 0.75 * expected) <= said <= max(SHORTEST_S, expected + 1)


def test_idle_time_says_nothing() -> None:
    rate = DrainRate()
    rate.begin(0.0)
    for i in range(100):
        rate.drain(i / 100)
    rate.end(1.0)
    rate.begin(3600.0)
    assert rate.retry_after_s(200, 3600.0) == 2


def test_a_change_of_pace_is_noticed_within_two_windows() -> None:
    rate = DrainRate()
    rate.begin(0.0)
    for i in range(1000):
        rate.drain(i / 100)
    for i in range(1, 11):
        rate.drain(10.0 + i)
    assert rate.retry_after_s(10, 20.0) >= 9
