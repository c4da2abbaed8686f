from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from remora.core import health
from remora.core.health import Verdict
from remora.core.state import Activity
from remora.types import ReplicaID

outcomes = st.sampled_from(["ok", "error", "timeout"])


@given(st.lists(outcomes, max_size=20), st.floats(0, 1e6))
def test_only_failures_in_a_row_count(history: list[str], now: float) -> None:
    activity = Activity()
    for outcome in history:
        activity = health.record(
            activity,
            now,
            error="boom" if outcome == "error" else "",
            timed_out=outcome == "timeout",
        )
    tail: list[str] = []
    for outcome in reversed(history):
        if outcome == "ok":
            break
        tail.append(outcome)
    judgement = health.judge(activity)
    if len(tail) < health.MAX_FAILURES:
        assert judgement.verdict is Verdict.FINE
    else:
        assert judgement.verdict is (Verdict.UNHEALTHY if "error" in tail else Verdict.HUNG)
        assert f"{len(tail)} health checks in a row failed" in judgement.reason
    if history:
        assert health.due_at(activity, 10.0) == now + 10.0


@given(st.integers(0, 10_000), st.floats(0.1, 1000.0))
def test_a_first_check_is_at_most_half_a_period_late(number: int, period_s: float) -> None:
    at = health.first_checked_s(ReplicaID(f"a/d#{number}"), period_s, 100.0)
    assert 100.0 <= at < 100.0 + 0.5 * period_s
    assert at == health.first_checked_s(ReplicaID(f"a/d#{number}"), period_s, 100.0)


def test_first_checks_are_spread_over_half_a_period() -> None:
    times = Counter(
        health.first_checked_s(ReplicaID(f"a/d#{number}"), 10.0, 0.0) for number in range(4000)
    )
    # A tick has so many at most where all 4,000 begin together.
    assert max(times.values()) < 120
    assert len(times) == health.SLOTS
