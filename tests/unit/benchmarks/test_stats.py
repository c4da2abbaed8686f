"""The statistics over the rounds of a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stats import paired_ratio, percentile, summarize

POSITIVE = st.floats(min_value=0.001, max_value=1e9)


@given(st.lists(POSITIVE, min_size=1))
def test_summary_lies_between_its_extremes(samples: list[float]) -> None:
    summary = summarize(samples)
    assert summary.low <= summary.median <= summary.high
    assert summary.samples == tuple(samples)


def test_summary_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_ratio_pairs_the_rounds() -> None:
    # The machine doubles its speed in the middle: the ratio of each round stays one half, while
    # the quotient of the medians (30 / 40) would not.
    assert paired_ratio([10, 30, 60], [20, 40, 120]) == 0.5


def test_ratio_uses_only_rounds_that_both_sides_finished() -> None:
    assert paired_ratio([10, 20, 1000], [10, 10]) == 1.5


@pytest.mark.parametrize(("measured", "limit"), (([], [1.0]), ([1.0], []), ([1.0], [0.0])))
def test_ratio_without_a_usable_pair_is_an_error(measured: list[float], limit: list[float]) -> None:
    with pytest.raises(ValueError, match=r"round|above zero"):
        paired_ratio(measured, limit)


@given(st.lists(POSITIVE, min_size=1), st.floats(min_value=0.01, max_value=1.0))
def test_percentile_is_a_sample_with_enough_below_it(values: list[float], fraction: float) -> None:
    found = percentile(values, fraction)
    assert found in values
    assert sum(value <= found for value in values) >= fraction * len(values) - 1e-6


def test_percentile_by_nearest_rank() -> None:
    assert percentile([5, 1, 4, 2, 3], 0.5) == 3
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile([7], 0.99) == 7


@pytest.mark.parametrize(("values", "fraction"), (([], 0.5), ([1.0], 0.0), ([1.0], 1.1)))
def test_percentile_refuses_nonsense(values: list[float], fraction: float) -> None:
    with pytest.raises(ValueError, match="need values"):
        percentile(values, fraction)
