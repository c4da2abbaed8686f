"""The speed table as data: one `Row` for each goal.

To add a goal, add a row here; a new kind of work also needs a scene in `sides.py` or an operation
in `drivers/`. How a row is sampled lives in `samples.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Better(Enum):
    """Which direction is good."""

    HIGHER = "higher"
    LOWER = "lower"


class Sampling(Enum):
    """What is sampled (`samples.py` maps each to a function)."""

    HTTP_RATE = "http_rate"
    HTTP_P50 = "http_p50"
    CALL_P50 = "call_p50"
    CALL_RATE = "call_rate"
    ITEM_RATE = "item_rate"
    ARRAY_1MB = "array_1mb"
    ARRAY_100MB = "array_100mb"
    EVENT_RATE = "event_rate"
    EVENT_GAP = "event_gap"
    MODEL_HITS = "model_hits"
    BATCH_P50_1 = "batch_p50_1"
    BATCH_RATE_8 = "batch_rate_8"
    BATCH_RATE_64 = "batch_rate_64"
    START = "start"
    MEMORY = "memory"


#: Rows that start and stop their own server for each sample.
FRESH = frozenset({Sampling.START, Sampling.MEMORY})


@dataclass(frozen=True)
class Goal:
    """A bound on the measured figure, or on its quotient by the limit.

    Attributes:
        bound: the figure itself is compared with it, or, when `relative`, measured / limit.
        relative: whether the bound is a multiple of the limit.
    """

    bound: float
    relative: bool


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: what `--rows` selects.
        title: what the reader sees.
        unit: unit of the figure.
        digits: digits after the decimal point in the table.
        scene: which set of targets is measured (see `sides.py`).
        sampling: what is measured on it.
        better: direction.
        goal: the bound to meet.
        limit: what the limit is, in words; None when the row has none.
        note: shown after the verdict, for example that the work belongs to a later release.
    """

    key: str
    title: str
    unit: str
    digits: int
    scene: str
    sampling: Sampling
    better: Better
    goal: Goal
    limit: str | None
    note: str = ""


ROWS: tuple[Row, ...] = (
    Row("http", "HTTP, 32 connections", "req/s", 0, "hello", Sampling.HTTP_RATE,
        Better.HIGHER, Goal(0.5, relative=True), "bare uvicorn ASGI"),
    Row("http1", "HTTP, 1 connection, p50", "ms", 3, "hello", Sampling.HTTP_P50,
        Better.LOWER, Goal(1.7, relative=True), "bare uvicorn ASGI"),
    Row("fastapi", "FastAPI handler, 32 connections", "req/s", 0, "fastapi", Sampling.HTTP_RATE,
        Better.HIGHER, Goal(1.0, relative=True), "the same app on uvicorn"),
    Row("handle", "handle call, p50", "ms", 3, "handle", Sampling.CALL_P50,
        Better.LOWER, Goal(1.6, relative=True), "uvloop ping-pong on a Unix socket"),
    Row("handle32", "handle calls, 32 in flight", "calls/s", 0, "handle", Sampling.CALL_RATE,
        Better.HIGHER, Goal(25_000, relative=False), None),
    Row("stream", "streamed items through a handle", "items/s", 0, "handle", Sampling.ITEM_RATE,
        Better.HIGHER, Goal(100_000, relative=False), None),
    Row("array1", "1 MB array as argument", "MB/s", 0, "handle", Sampling.ARRAY_1MB,
        Better.HIGHER, Goal(3_000, relative=False), "memcpy into reused shared memory"),
    Row("array100", "100 MB array as argument", "MB/s", 0, "handle", Sampling.ARRAY_100MB,
        Better.HIGHER, Goal(5_000, relative=False), "memcpy into reused shared memory"),
    Row("sse", "server-sent events, 128 streams", "events/s", 0, "sse", Sampling.EVENT_RATE,
        Better.HIGHER, Goal(100_000, relative=False), "the same app on uvicorn"),
    Row("sse_gap", "gap p99 of 128 paced streams, over the generator's", "ms", 2, "sse",
        Sampling.EVENT_GAP, Better.LOWER, Goal(5.0, relative=False), None),
    Row("grpc", "gRPC, one message each way, 32 in flight", "calls/s", 0, "grpc",
        Sampling.CALL_RATE, Better.HIGHER, Goal(0.5, relative=True),
        "gRPC's own server (grpc.aio) with the same handler"),
    Row("models", "1,000 models under Zipf load, hits against an ideal LRU", "%", 1, "models",
        Sampling.MODEL_HITS, Better.HIGHER, Goal(95, relative=False), None),
    Row("batch1", "@batch on a torch MLP, 1 caller, p50", "ms", 3, "batch", Sampling.BATCH_P50_1,
        Better.LOWER, Goal(1.05, relative=True), "best static setting of a sweep"),
    Row("batch8", "@batch on a torch MLP, 8 callers", "calls/s", 0, "batch", Sampling.BATCH_RATE_8,
        Better.HIGHER, Goal(0.95, relative=True), "best static setting of a sweep"),
    Row("batch64", "@batch on a torch MLP, 64 callers", "calls/s", 0, "batch",
        Sampling.BATCH_RATE_64, Better.HIGHER, Goal(0.95, relative=True),
        "best static setting of a sweep"),
    Row("start", "start command to first answer, FastAPI app", "s", 3, "fastapi", Sampling.START,
        Better.LOWER, Goal(2.5, relative=True), "uvicorn command, same app"),
    Row("start_hello", "start command to first answer, hello app", "s", 3, "hello",
        Sampling.START, Better.LOWER, Goal(0.6, relative=False), None, "information"),
    Row("memory", "memory of the idle hello app, all processes (PSS)", "MB", 1, "hello",
        Sampling.MEMORY, Better.LOWER, Goal(120, relative=False), None),
)  # fmt: skip


def select_rows(keys: str | None) -> tuple[Row, ...]:
    """Return the rows named in a comma-separated list, in table order; all for None. Pure.

    Raises:
        ValueError: a name is unknown.
    """
    if not keys:
        return ROWS
    wanted = {key.strip() for key in keys.split(",") if key.strip()}
    known = {row.key for row in ROWS}
    if unknown := sorted(wanted - known):
        raise ValueError(f"unknown rows {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return tuple(row for row in ROWS if row.key in wanted)
