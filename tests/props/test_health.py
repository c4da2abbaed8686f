from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core import health
from remora.core.health import Verdict
from remora.core.state import Activity

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
