"""Looking through a queue costs no more than it brings, and reaches everybody in the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.look import (
    MAX_MODELS,
    MAX_PASSED_OVER,
    is_over,
    most_passed_over,
    needs_full_look,
)

queues = st.integers(0, 10_000)


@given(queues, st.none() | st.integers(0, 500))
def test_where_each_waits_for_its_own_replica_few_are_asked(
    num_queued: int, num_asked: int | None
) -> None:
    most = most_passed_over(num_queued, False, num_asked)
    assert most == (MAX_PASSED_OVER if num_asked is None else num_asked)
    assert is_over(most + 1, 0, most)
    assert not is_over(most, 0, most)


@given(queues, st.integers(0, MAX_MODELS))
def test_where_the_model_decides_only_models_are_counted(num_queued: int, num_models: int) -> None:
    most = most_passed_over(num_queued, True, None)
    assert is_over(num_queued, num_models, most) == (num_models == MAX_MODELS)


@given(queues, st.booleans())
def test_those_that_were_not_reached_are_looked_at_later_unless_user_code_decides(
    num_passed_over: int, is_asked: bool
) -> None:
    assert needs_full_look(num_passed_over, MAX_PASSED_OVER, is_asked=is_asked) == (
        num_passed_over > MAX_PASSED_OVER and not is_asked
    )
