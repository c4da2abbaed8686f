"""Counters of batches, cheap enough for every batch, under the names of Ray Serve."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

#: Upper bounds of the histograms.
TIMES_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
PERCENTS = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 100)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass
class Histogram:
    """How many values fell below each bound.

    Attributes:
        bounds: upper bounds, inclusive, rising.
        counts: values in each bucket; one more for those above all bounds.
        total: sum of all values.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    def add(self, other: Histogram) -> None:
        """Count what another one with the same bounds has counted."""
        self.counts = [own + its for own, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def read(self) -> dict[str, Any]:
        """Number and sum of all values, and how many fell at or below each bound."""
        buckets, below = {}, 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            buckets[bound] = below
        return {"count": below, "sum": self.total, "buckets": buckets}


class BatchCounters:
    """What became of the batches of one queue, or of several."""

    def __init__(self) -> None:
        self.num_batches = 0
        self.wait_ms = Histogram(TIMES_MS)
        self.execution_ms = Histogram(TIMES_MS)
        self.utilization_percent = Histogram(PERCENTS)
        self.size = Histogram(SIZES)

    def started(self, size: float, max_size: float, wait_s: float) -> None:
        """Count a batch that starts after its first item has waited for `wait_s`."""
        self.wait_ms.observe(wait_s * 1000)
        self.size.observe(size)
        self.utilization_percent.observe(100 * size / max_size)

    def ended(self, took_s: float) -> None:
        """Count a batch that has ended."""
        self.num_batches += 1
        self.execution_ms.observe(took_s * 1000)

    def add(self, other: BatchCounters) -> None:
        """Count what another queue has counted."""
        self.num_batches += other.num_batches
        self.wait_ms.add(other.wait_ms)
        self.execution_ms.add(other.execution_ms)
        self.utilization_percent.add(other.utilization_percent)
        self.size.add(other.size)

    def read(self, queue_length: int) -> dict[str, Any]:
        """Everything by the names of Ray Serve's metrics."""
        return {
            "serve_batch_wait_time_ms": self.wait_ms.read(),
            "serve_batch_execution_time_ms": self.execution_ms.read(),
            "serve_batch_queue_length": queue_length,
            "serve_batch_utilization_percent": self.utilization_percent.read(),
            "serve_actual_batch_size": self.size.read(),
            "serve_batches_processed": self.num_batches,
        }
