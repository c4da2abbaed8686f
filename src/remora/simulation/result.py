"""What a simulation found, and its picture as text.

Rules: pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from remora.core.autoscale.record import ScalingRecord
from remora.types import Seconds

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Sample:
    """One deployment at one moment.

    Attributes:
        p50_s: of the requests that ended since the last sample; None: there were none.
    """

    at_s: Seconds
    target: int
    running: int
    ongoing: int
    queued: int
    arrived: int
    p50_s: Seconds | None
    p99_s: Seconds | None


@dataclass
class Result:
    """One deployment over a simulation.

    Attributes:
        latencies: of every request that ended, in the order of their ends.
        waits: how much of that each has waited for a replica.
        num_unfinished: requests that were under way at the end.
        replica_s: seconds that replicas ran, all together.
    """

    name: str
    samples: list[Sample] = field(default_factory=list)
    decisions: list[ScalingRecord] = field(default_factory=list)
    latencies: list[Seconds] = field(default_factory=list)
    waits: list[Seconds] = field(default_factory=list)
    num_unfinished: int = 0
    replica_s: Seconds = 0.0

    def latency_s(self, share: float) -> Seconds | None:
        """A quantile of the latency, `share` in 0..1; None: nothing ended."""
        return quantile(self.latencies, share)

    @property
    def peak(self) -> int:
        """The most replicas that ran."""
        return max((sample.running for sample in self.samples), default=0)

    def summary(self) -> dict[str, float | int | str | None]:
        """The figures in short."""
        return {
            "deployment": self.name,
            "requests": len(self.latencies) + self.num_unfinished,
            "unfinished": self.num_unfinished,
            "p50_s": self.latency_s(0.5),
            "p99_s": self.latency_s(0.99),
            "longest_wait_s": max(self.waits, default=0.0),
            "decisions": len(self.decisions),
            "peak_replicas": self.peak,
            "replica_hours": self.replica_s / 3600,
        }


def quantile(values: Sequence[float], share: float) -> float | None:
    """The nearest value below which `share` of them lie; None: there are none. Pure."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def drawn(results: Sequence[Result], width: int = 72) -> str:
    """Draw deployments over time as text. Pure."""
    return "\n\n".join("\n".join(_lines(result, width)) for result in results)


def _lines(result: Result, width: int) -> list[str]:
    samples = result.samples
    length_s = samples[-1].at_s if samples else 0.0
    found = result.summary()
    figures = (
        f"{result.name}: {found['requests']} requests in {length_s:g} s, p50 {_ms(found['p50_s'])}, "
        f"p99 {_ms(found['p99_s'])}, longest wait {_ms(found['longest_wait_s'])}, at most "
        f"{result.peak} replicas, {found['replica_hours']:.3g} replica hours"
    )
    lines = [figures]
    series: list[tuple[str, list[float], str]] = [
        ("requests/s", rates(samples), ""),
        ("ongoing", [float(each.ongoing) for each in samples], ""),
        ("queued", [float(each.queued) for each in samples], ""),
        ("target", [float(each.target) for each in samples], ""),
        ("running", [float(each.running) for each in samples], ""),
        ("p99", [each.p99_s or 0.0 for each in samples], "s"),
    ]
    for name, values, unit in series:
        lines.append(f"  {name:<10} {_bar(values, width)} {max(values, default=0):.4g}{unit}")
    decisions = [
        f"  {record.at_unix_s:8.1f} s  {record.before} -> {record.after}  {record.reason}"
        for record in result.decisions
    ]
    return lines + decisions


def _ms(value: object) -> str:
    return "-" if not isinstance(value, float) else f"{value * 1000:.0f} ms"


def rates(samples: Sequence[Sample]) -> list[float]:
    """Requests per second that came, by sample. Pure."""
    rates, before = [], 0.0
    for sample in samples:
        rates.append(sample.arrived / (sample.at_s - before) if sample.at_s > before else 0.0)
        before = sample.at_s
    return rates


def _bar(values: Sequence[float], width: int) -> str:
    """Draw numbers as bars of eight heights; where several share a column, the highest."""
    if not values:
        return ""
    columns = min(width, len(values))
    highest = max(values)
    bars = []
    for column in range(columns):
        begin = column * len(values) // columns
        end = max(begin + 1, (column + 1) * len(values) // columns)
        share = max(values[begin:end]) / highest if highest else 0.0
        bars.append(_BARS[math.ceil(share * (len(_BARS) - 1))])
    return "".join(bars)
