"""Counters of requests at a front door, cheap enough for every request.

Plain dictionaries and lists that one loop writes; a reader takes a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from remora.observe.metrics import counter, render
from remora.wire.metrics import Family

#: Upper bounds of the latency histogram, in seconds.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
#: The same in milliseconds, as metrics show them.
BUCKETS_MS = tuple(bound_s * 1000 for bound_s in BUCKETS_S)
#: What a WebSocket's row has as its status when both sides parted in peace.
CLOSED_WELL = frozenset((1000, 1001, 1005))
#: More different rows are not kept: what is new then is counted under `OTHER`.
MAX_ROWS = 10_000
OTHER = "other"
_LABELS = ("application", "method", "route", "status_code")


class RequestCounters:
    """Requests of one protocol and their latency by application, method, status and route."""

    def __init__(self, protocol: str = "http", status_name: Callable[[int], str] = str) -> None:
        """Make counters, all at zero.

        Args:
            protocol: `http` or `grpc`; the names of what is counted say which.
            status_name: how a status is written in labels.
        """
        self._protocol = protocol
        self._status_name = status_name
        #: Statuses from here on are errors.
        self._first_error = 400 if protocol == "http" else 1
        self._rows: dict[tuple[str, str, int, str], list[float]] = {}

    def count(
        self, application: str, method: str, status: int, took_s: float, route: str = ""
    ) -> None:
        """Count one request."""
        key = (application, method, status, route)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS:
                # A client may send any method, and a mount may have a name in its path.
                key = (application, OTHER, status, OTHER)
            row = self._rows.setdefault(key, [0.0] * (len(BUCKETS_S) + 2))
        row[bisect_left(BUCKETS_S, took_s)] += 1
        row[-1] += took_s

    def rows(self) -> list[tuple[str, str, int, str, int, float]]:
        """Application, method, status, route, number of requests, sum of their seconds."""
        return [(*key, int(sum(row[:-1])), row[-1]) for key, row in self._rows.items()]

    def families(self) -> list[Family]:
        """Everything, under the names of Ray Serve."""
        of = self._protocol
        requests: dict[tuple[str, ...], float] = {}
        errors: dict[tuple[str, ...], float] = {}
        latency: dict[tuple[str, ...], list[float]] = {}
        for (application, method, status, route), row in self._rows.items():
            key = (application, method, route, self._status_name(status))
            requests[key] = sum(row[:-1])
            if status >= self._first_error and status not in CLOSED_WELL:
                errors[key] = requests[key]
            latency[key] = [*row[:-1], row[-1] * 1000]
        return [
            counter(f"serve_num_{of}_requests", _LABELS, requests),
            counter(f"serve_num_{of}_error_requests", _LABELS, errors),
            Family(f"serve_{of}_request_latency_ms", "histogram", _LABELS, latency, BUCKETS_MS),
        ]

    def render(self) -> str:
        """Write everything in the text format of Prometheus."""
        return render(self.families())
