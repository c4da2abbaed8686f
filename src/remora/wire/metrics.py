"""What processes count, on its way to whoever asks for metrics."""

from __future__ import annotations

import msgspec


class Family(msgspec.Struct, array_like=True):
    """One metric with all its rows.

    Attributes:
        name: as Prometheus knows it, without `_total`, `_bucket`, `_sum` and `_count`.
        kind: `counter`, `gauge` or `histogram`.
        labels: names of the labels.
        rows: by the labels' values: one number; of a histogram how many values fell into each
            bucket, one more for those above all bounds, and the sum of all values.
        bounds: upper bounds of a histogram's buckets, inclusive, rising.
        text: what it means, for people; empty: its name says it.
        by_user: the user's code counts it.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    rows: dict[tuple[str, ...], list[float]]
    bounds: tuple[float, ...] = ()
    text: str = ""
    by_user: bool = False


class MetricsReport(msgspec.Struct, frozen=True):
    """What one process counts, or what several do."""

    families: tuple[Family, ...] = ()


class MetricsRequest(msgspec.Struct, frozen=True):
    """Who asks for everybody else's metrics: the name in its `Subscription`."""

    subscriber: str = ""


class MetricsCall(msgspec.Struct, frozen=True):
    """The controller wants the metrics of a process that follows it."""

    number: int


class MetricsAnswer(msgspec.Struct, frozen=True):
    """The answer to a `MetricsCall`."""

    number: int
    families: tuple[Family, ...] = ()
