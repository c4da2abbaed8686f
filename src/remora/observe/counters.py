"""Counters of requests, cheap enough for every request.

Plain dictionaries and lists that one loop writes; a reader takes a copy.
"""

from __future__ import annotations

from bisect import bisect_left

#: Upper bounds of the latency histogram, in seconds.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class RequestCounters:
    """Requests and their latency by application, method and status."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, int], list[float]] = {}

    def count(self, application: str, method: str, status: int, took_s: float) -> None:
        """Count one request."""
        key = (application, method, status)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = [0.0] * (len(BUCKETS_S) + 2)
        row[bisect_left(BUCKETS_S, took_s)] += 1
        row[-1] += took_s

    def rows(self) -> list[tuple[str, str, int, int, float]]:
        """Application, method, status, number of requests, sum of their seconds."""
        return [(*key, int(sum(row[:-1])), row[-1]) for key, row in self._rows.items()]
