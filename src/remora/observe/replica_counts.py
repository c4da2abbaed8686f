"""What one replica counts: its requests, and what its loaders and batches counted themselves.

The way of a request pays for two looks at the clock, a search among the bounds and two additions;
names and labels come in when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

from remora.observe.batches import BatchCounters, Histogram
from remora.observe.counters import BUCKETS_MS, BUCKETS_S, OTHER
from remora.observe.metrics import counter, gauge, merged
from remora.wire.metrics import Family

LABELS = ("application", "deployment", "replica")
#: Upper bounds of how long loading and unloading takes.
LOAD_MS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500, 1000, 2000, 5000, 10_000, 60_000),
    *(120_000, 300_000, 600_000),
)
#: More kinds of errors are counted as `OTHER`.
MAX_ERROR_KINDS = 500
#: Models that are named one by one.
MAX_MODELS_NAMED = 200


class ReplicaCounts:
    """The requests of one replica, by the route prefix that they came in by ("": a handle)."""

    __slots__ = ("_cancelled", "_errors", "_good", "_route", "_row", "_rows")

    def __init__(self) -> None:
        self._route = ""
        self._row: list[float] = [0] * (len(BUCKETS_S) + 2)
        self._rows = {"": self._row}
        self._errors: Counter[tuple[str, str]] = Counter()
        self._cancelled: Counter[str] = Counter()
        self._good: dict[tuple[str, ...], float] = {}

    def ended(self, route: str, took_s: float) -> None:
        """Count a request that was begun, however it ended."""
        # Nearly all requests of a replica come by the same route.
        if route != self._route:
            self._route = route
            self._row = self._rows.setdefault(route, [0] * (len(BUCKETS_S) + 2))
        row = self._row
        row[bisect_left(BUCKETS_S, took_s)] += 1
        row[-1] += took_s

    def failed(self, route: str, error: BaseException) -> None:
        """Count what was raised; the request is counted once more when it ends."""
        key = (route, type(error).__name__)
        if len(self._errors) >= MAX_ERROR_KINDS and key not in self._errors:
            key = (route, OTHER)
        self._errors[key] += 1

    def cancelled(self, route: str) -> None:
        """Count a request whose caller has left; it is counted once more when it ends."""
        self._cancelled[route] += 1

    def families(self, replica: tuple[str, str, str], ongoing: int, limit: int) -> list[Family]:
        """Everything, under the names of Ray Serve.

        Args:
            replica: application, deployment and id.
            ongoing: requests at work.
            limit: how many may be.
        """
        labels = (*LABELS, "route")
        failed: Counter[str] = Counter()
        for (route, _), count in self._errors.items():
            failed[route] += count
        rows = {route: row for route, row in self._rows.items() if row[-1] or any(row)}
        for route, row in rows.items():
            good = sum(row[:-1]) - failed[route] - self._cancelled[route]
            # An error is counted a moment before its request, and a counter never goes back.
            key = (*replica, route)
            self._good[key] = max(good, self._good.get(key, 0))
        latency: dict[tuple[str, ...], list[float]] = {
            (*replica, route): [*row[:-1], row[-1] * 1000] for route, row in rows.items()
        }
        errors: dict[tuple[str, ...], float] = {
            (*replica, *key): count for key, count in self._errors.items()
        }
        left: dict[tuple[str, ...], float] = {
            (*replica, route): count for route, count in self._cancelled.items()
        }
        name = "serve_deployment_processing_latency_ms"
        return [
            counter("serve_deployment_replica_starts", LABELS, {replica: 1}),
            gauge("serve_replica_processing_queries", LABELS, {replica: ongoing}),
            gauge("serve_replica_max_ongoing_requests", LABELS, {replica: limit}),
            counter("serve_deployment_request_counter", labels, self._good),
            counter("serve_deployment_error_counter", (*labels, "exception_type"), errors),
            counter("serve_deployment_cancelled_counter", labels, left),
            Family(name, "histogram", labels, latency, BUCKETS_MS),
        ]


class LoadCounts:
    """What one loader of models did.

    Attributes:
        num_asked: how often it was asked for a model.
        loads: how long loads took, in milliseconds.
        unloads: how long unloading took.
    """

    __slots__ = ("loads", "num_asked", "unloads")

    def __init__(self) -> None:
        self.num_asked = 0
        self.loads = Histogram(LOAD_MS)
        self.unloads = Histogram(LOAD_MS)


def model_families(
    replica: tuple[str, str, str], loaders: Iterable[LoadCounts], loaded: list[str]
) -> list[Family]:
    """What all loaders of a replica did, under the names of Ray Serve; nothing without loaders."""
    total = LoadCounts()
    some = False
    for each in loaders:
        some = True
        total.num_asked += each.num_asked
        total.loads.add(each.loads)
        total.unloads.add(each.unloads)
    if not some:
        return []
    of = "serve_multiplexed_"
    return [
        counter(f"{of}get_model_requests_counter", LABELS, {replica: total.num_asked}),
        counter(f"{of}models_load_counter", LABELS, {replica: total.loads.count}),
        counter(f"{of}models_unload_counter", LABELS, {replica: total.unloads.count}),
        _histogram(f"{of}model_load_latency_ms", LABELS, replica, total.loads),
        _histogram(f"{of}model_unload_latency_ms", LABELS, replica, total.unloads),
        gauge("serve_num_multiplexed_models", LABELS, {replica: len(loaded)}),
        gauge(
            "serve_registered_multiplexed_model_id",
            (*LABELS, "model_id"),
            {(*replica, model_id): 1 for model_id in loaded[-MAX_MODELS_NAMED:]},
        ),
    ]


def batch_families(
    replica: tuple[str, str, str], functions: Mapping[str, tuple[BatchCounters, int]]
) -> list[Family]:
    """What the batched functions of a replica did, under the names of Ray Serve.

    Args:
        replica: application, deployment and id.
        functions: by their names, with how many calls wait.
    """
    labels = (*LABELS, "function_name")
    return merged(
        family
        for name, (counts, num_waiting) in functions.items()
        for key in [(*replica, name)]
        for family in (
            _histogram("serve_batch_wait_time_ms", labels, key, counts.wait_ms),
            _histogram("serve_batch_execution_time_ms", labels, key, counts.execution_ms),
            gauge("serve_batch_queue_length", labels, {key: num_waiting}),
            _histogram("serve_batch_utilization_percent", labels, key, counts.utilization_percent),
            _histogram("serve_actual_batch_size", labels, key, counts.size),
            counter("serve_batches_processed", labels, {key: counts.num_batches}),
        )
    )


def _histogram(
    name: str, labels: tuple[str, ...], key: tuple[str, ...], values: Histogram
) -> Family:
    return Family(name, "histogram", labels, {key: [*values.counts, values.total]}, values.bounds)
