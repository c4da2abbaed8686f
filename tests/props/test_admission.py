"""Nobody comes in above a limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.admission import may_start

counts = st.integers(0, 1000)


@given(counts, st.integers(1, 1000), st.booleans())
def test_a_replica_never_works_on_more_than_its_limit(
    num_ongoing: int, max_ongoing: int, draining: bool
) -> None:
    may = may_start(num_ongoing, max_ongoing, draining)
    assert may is (not draining and num_ongoing + 1 <= max_ongoing)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_a_history_of_starts_and_ends_stays_within_the_limit(steps: list[bool], limit: int) -> None:
    ongoing = 0
    for starts in steps:
        if starts and may_start(ongoing, limit, draining=False):
            ongoing += 1
        elif not starts and ongoing:
            ongoing -= 1
        assert 0 <= ongoing <= limit
