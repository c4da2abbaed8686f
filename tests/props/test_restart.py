from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core import restart


@given(st.integers(0, 10_000))
def test_the_back_off_never_shrinks_and_is_bounded(failures: int) -> None:
    assert 0 <= restart.delay_s(failures) <= restart.delay_s(failures + 1)
    assert restart.delay_s(failures) <= restart.MAX_DELAY_S


@given(st.integers(1, 100), st.integers(1, 50), st.booleans(), st.booleans(), st.booleans())
def test_gives_up_only_at_the_limit_and_only_what_never_worked(
    failures: int, limit: int, worked: bool, some_run: bool, old: bool
) -> None:
    gives_up = restart.gives_up(
        failures, limit, worked_before=worked, can_fall_back=old, some_run=some_run
    )
    assert gives_up == (failures >= limit and (old or not (worked or some_run)))


@given(st.integers(1, 100), st.integers(1, 20))
def test_the_limit_is_at_most_three_for_each_replica(configured: int, target: int) -> None:
    assert 1 <= restart.max_attempts(configured, target) <= min(configured, 3 * target)


@given(st.lists(st.floats(0, 100), max_size=200))
def test_never_more_starts_in_a_minute_than_free_ones_and_slowed_ones(gaps: list[float]) -> None:
    """A replica that crashes the moment it may be there again."""
    now = 0.0
    crashes: tuple[float, ...] = ()
    starts: list[float] = []
    for gap in gaps:
        crashes, at = restart.after_crash(crashes, now)
        assert at >= now
        starts.append(at)
        now = at + gap
    for first in starts:
        inside = [at for at in starts if first <= at < first + restart.CRASH_WINDOW_S]
        # 0.1 + 0.2 + … + 25.6 s is more than 50 s: nine slowed starts, two free ones, and the
        # ones that the window's edge lets in again.
        assert len(inside) <= 13


def test_the_first_crashes_are_answered_at_once_and_old_ones_forgotten() -> None:
    crashes, at = restart.after_crash((), 100.0)
    assert at == 100.0
    crashes, at = restart.after_crash(crashes, 101.0)
    assert at == 101.0
    crashes, at = restart.after_crash(crashes, 102.0)
    assert at > 102.0
    crashes, at = restart.after_crash(crashes, 1000.0)
    assert (crashes, at) == ((1000.0,), 1000.0)
