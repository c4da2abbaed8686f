"""Second tries are a bounded share of the traffic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.retry_budget import CAPACITY, RESERVE, SHARE, RetryBudget


@given(st.lists(st.sampled_from(("request", "retry")) | st.integers(1, 400), max_size=60))
def test_retries_never_exceed_reserve_and_share(steps: list[str | int]) -> None:
    budget = RetryBudget()
    requests = retries = 0
    for step in steps:
        if step == "request":
            budget.deposit()
            requests += 1
        else:
            for _ in range(step if isinstance(step, int) else 1):
                retries += budget.withdraw()
        assert 0 <= budget.balance <= CAPACITY
        assert retries <= RESERVE + SHARE * requests + 1e-6


def test_an_empty_budget_fills_with_traffic() -> None:
    budget = RetryBudget()
    assert sum(budget.withdraw() for _ in range(1000)) == RESERVE
    assert not budget.withdraw()
    for _ in range(round(2 / SHARE) + 1):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


def test_it_saves_up_no_more_than_its_capacity() -> None:
    budget = RetryBudget()
    for _ in range(int(2 * CAPACITY / SHARE)):
        budget.deposit()
    assert budget.balance == CAPACITY
