"""Small statistics over the samples of one row. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What several rounds of one measurement say.

    Attributes:
        median: the figure that is reported.
        low: the smallest sample.
        high: the largest sample.
        samples: every round, in the order measured.
    """

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


def summarize(samples: Sequence[float]) -> Summary:
    """Reduce the samples of one row to a median and a range. Pure.

    Raises:
        ValueError: there is no sample.
    """
    if not samples:
        raise ValueError("no samples to summarize: the measurement never finished a round")
    return Summary(statistics.median(samples), min(samples), max(samples), tuple(samples))


def paired_ratio(measured: Sequence[float], limit: Sequence[float]) -> float:
    """Return the median over the rounds of `measured / limit`. Pure.

    The two sides of a round run seconds apart, so their quotient cancels what the machine does
    over minutes (neighbours, clock frequency). A quotient of two medians would not.

    Raises:
        ValueError: the sides have no round in common, or a limit is not positive.
    """
    pairs = list(zip(measured, limit, strict=False))
    if not pairs:
        raise ValueError("no round in which both sides were measured")
    if any(bound <= 0 for _, bound in pairs):
        raise ValueError(f"a limit must be above zero, got {list(limit)}")
    return statistics.median(value / bound for value, bound in pairs)


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the nearest-rank percentile, `fraction` in (0, 1]. Pure.

    Raises:
        ValueError: `values` is empty or `fraction` out of range.
    """
    if not values or not 0.0 < fraction <= 1.0:
        raise ValueError(f"need values and 0 < fraction <= 1, got {len(values)} and {fraction}")
    return sorted(values)[math.ceil(fraction * len(values)) - 1]
