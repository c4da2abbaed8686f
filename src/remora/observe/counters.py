"""Counters of requests, cheap enough for every request.

Plain dictionaries and lists that one loop writes; a reader takes a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

#: Upper bounds of the latency histogram, in seconds.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
#: What a WebSocket's row has as its status when both sides parted in peace.
CLOSED_WELL = frozenset((1000, 1001, 1005))
#: More different rows are not kept: what is new then is counted under `OTHER`.
MAX_ROWS = 10_000
OTHER = "other"


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

    def render(self) -> str:
        """Write everything in the text format of Prometheus, under the names of Ray Serve."""
        of = self._protocol
        requests = [f"# TYPE serve_num_{of}_requests_total counter"]
        errors = [f"# TYPE serve_num_{of}_error_requests_total counter"]
        latency = [f"# TYPE serve_{of}_request_latency_ms histogram"]
        for application, method, status, route, count, total_s in sorted(self.rows()):
            row = self._rows[application, method, status, route]
            labels = (
                f'application="{escaped(application)}",method="{escaped(method)}",'
                f'route="{escaped(route)}",status_code="{self._status_name(status)}"'
            )
            requests.append(f"serve_num_{of}_requests_total{{{labels}}} {count}")
            if status >= self._first_error and status not in CLOSED_WELL:
                errors.append(f"serve_num_{of}_error_requests_total{{{labels}}} {count}")
            below = 0
            for bound_s, in_bucket in zip((*BUCKETS_S, None), row[:-1], strict=True):
                below += int(in_bucket)
                bound = "+Inf" if bound_s is None else f"{bound_s * 1000:g}"
                latency.append(
                    f'serve_{of}_request_latency_ms_bucket{{{labels},le="{bound}"}} {below}'
                )
            latency.append(f"serve_{of}_request_latency_ms_sum{{{labels}}} {total_s * 1000:g}")
            latency.append(f"serve_{of}_request_latency_ms_count{{{labels}}} {count}")
        return "\n".join((*requests, *errors, *latency, ""))


def escaped(value: str) -> str:
    """A label's value: a client may send any method, an application may have any name."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
