"""How each kind of figure is sampled once. One function for each `Sampling`."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.event_load import events_per_s, gap_p99_over_ms
from benchmarks.http_load import p50_ms, requests_per_s
from benchmarks.processes import TargetError
from benchmarks.rows import Sampling
from benchmarks.targets import DriverTarget, HttpTarget, Target

#: Idle time before memory is read: background imports and first ticks are over by then.
_SETTLE_S = 2.0
_MB = 1_000_000

Sample = Callable[[Target, int], float]


def _http(target: Target) -> HttpTarget:
    if not isinstance(target, HttpTarget):
        raise TypeError(f"this row needs an HTTP server, got {type(target).__name__}")
    return target


def _driver(target: Target) -> DriverTarget:
    if not isinstance(target, DriverTarget):
        raise TypeError(f"this row needs a driver, got {type(target).__name__}")
    return target


def http_rate(target: Target, duration_s: int) -> float:
    """Requests per second over 32 connections."""
    server = _http(target)
    rate = requests_per_s(server.request, duration_s, 32, server.folder)
    server.require_alive()
    return rate


def http_p50(target: Target, duration_s: int) -> float:
    """Median milliseconds of a request on one connection."""
    return p50_ms(_http(target).request, duration_s)


def call_p50(target: Target, duration_s: int) -> float:
    """Median milliseconds of a call, one at a time."""
    return _driver(target).ask("call_p50_ms", duration_s=duration_s)


def call_rate(target: Target, duration_s: int) -> float:
    """Calls per second, 32 in flight."""
    return _driver(target).ask("calls_per_s", duration_s=duration_s, in_flight=32)


def item_rate(target: Target, duration_s: int) -> float:
    """Items per second out of one stream."""
    return _driver(target).ask("items_per_s", duration_s=duration_s)


def array_1mb(target: Target, duration_s: int) -> float:
    """Megabytes per second as arguments of 1 MB, one call at a time."""
    return _driver(target).ask("array_mb_per_s", duration_s=duration_s, size_bytes=_MB)


def array_100mb(target: Target, duration_s: int) -> float:
    """Megabytes per second as arguments of 100 MB, one call at a time."""
    return _driver(target).ask("array_mb_per_s", duration_s=duration_s, size_bytes=100 * _MB)


def event_rate(target: Target, duration_s: int) -> float:
    """Events per second out of 128 streams that never pause."""
    return events_per_s(_http(target).request.port, duration_s)


def event_gap(target: Target, duration_s: int) -> float:
    """Milliseconds by which the gaps of 128 paced streams grow on the way."""
    return gap_p99_over_ms(_http(target).request.port, duration_s)


def model_hits(target: Target, duration_s: int) -> float:
    """Hits as a percentage of those of an ideal cache."""
    return _driver(target).ask("model_hits_percent", duration_s=duration_s)


def batch_p50_1(target: Target, duration_s: int) -> float:
    """Median milliseconds of a batched call that nobody else makes one beside."""
    return _driver(target).ask("p50_ms", duration_s=duration_s, callers=1)


def batch_rate_8(target: Target, duration_s: int) -> float:
    """Batched calls per second of 8 callers: fewer than a batch may have."""
    return _driver(target).ask("rate", duration_s=duration_s, callers=8)


def batch_rate_64(target: Target, duration_s: int) -> float:
    """Batched calls per second of 64 callers: more than a batch may have."""
    return _driver(target).ask("rate", duration_s=duration_s, callers=64)


def start_s(target: Target, duration_s: int) -> float:
    """Seconds from the command to the first answer. `duration_s` is not used."""
    try:
        return target.start()
    finally:
        target.stop()


def idle_memory_mb(target: Target, duration_s: int) -> float:
    """Memory after one answer and a pause. `duration_s` is not used."""
    server = _http(target)
    try:
        server.start()
        time.sleep(_SETTLE_S)
        server.require_alive()
        memory_mb = server.pss_mb()
    finally:
        server.stop()
    if memory_mb <= 0:
        raise TargetError(f"no memory could be read for {server.name}: is /proc mounted?")
    return memory_mb


SAMPLES: dict[Sampling, Sample] = {
    Sampling.HTTP_RATE: http_rate,
    Sampling.HTTP_P50: http_p50,
    Sampling.CALL_P50: call_p50,
    Sampling.CALL_RATE: call_rate,
    Sampling.ITEM_RATE: item_rate,
    Sampling.ARRAY_1MB: array_1mb,
    Sampling.ARRAY_100MB: array_100mb,
    Sampling.EVENT_RATE: event_rate,
    Sampling.EVENT_GAP: event_gap,
    Sampling.MODEL_HITS: model_hits,
    Sampling.BATCH_P50_1: batch_p50_1,
    Sampling.BATCH_RATE_8: batch_rate_8,
    Sampling.BATCH_RATE_64: batch_rate_64,
    Sampling.START: start_s,
    Sampling.MEMORY: idle_memory_mb,
}
