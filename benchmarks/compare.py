"""Two goals that compare Remora on Ray: with the embedded engine, and with Ray Serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.rows import FRESH, Better, Row, Sampling
from benchmarks.session import Outcome, Outcomes
from benchmarks.sides import ON_RAY, REMORA
from benchmarks.stats import paired_ratio, summarize

#: On Ray a row of the data plane is as good as this part of the embedded engine's.
_OF_LOCAL = 0.9
#: On a small request Remora on Ray is this many times as good as the best mode of Ray Serve.
_TIMES_RAY_SERVE = 5.0
_SMALL = ("http", "http1", "fastapi", "handle", "handle32")
#: The difference of two times, which may be nothing at all.
_NO_QUOTIENT = frozenset({Sampling.EVENT_GAP})
RAY_SERVE = ("ray", "ray-throughput")


@dataclass(frozen=True)
class Comparison:
    """How many times as good one side is as another.

    Attributes:
        times: above 1 is better, whichever direction of the figure is good.
        goal: the least that it should be; None: it has no goal.
    """

    times: float
    goal: float | None

    @property
    def met(self) -> bool:
        """Whether the goal is met, if there is one."""
        return self.goal is None or self.times >= self.goal

    def __str__(self) -> str:
        times = f"{self.times:.2f}"
        return times if self.goal is None else f"{times} ({'met' if self.met else 'missed'})"


def by_local(row: Row, outcomes: Outcomes) -> Comparison | None:
    """Compare Remora on Ray with the embedded engine, round by round; None: there is no quotient.

    Starts and memory are Ray's own for the most part, so they have no goal.
    """
    ray, local = outcomes.get((row.key, ON_RAY)), outcomes.get((row.key, REMORA))
    if ray is None or local is None or not _is_whole(ray) or not _is_whole(local):
        return None
    if row.sampling in _NO_QUOTIENT:
        return None
    goal = None if row.sampling in FRESH else _OF_LOCAL
    if row.better is Better.HIGHER:
        return Comparison(paired_ratio(ray.samples, local.samples), goal)
    return Comparison(paired_ratio(local.samples, ray.samples), goal)


def by_ray_serve(row: Row, outcomes: Outcomes) -> Comparison | None:
    """Compare Remora on Ray, or else alone, with the better mode of Ray Serve."""
    ours = outcomes.get((row.key, ON_RAY)) or outcomes.get((row.key, REMORA))
    found = [outcomes.get((row.key, name)) for name in RAY_SERVE]
    theirs = [summarize(each.samples).median for each in found if each and _is_whole(each)]
    if ours is None or not _is_whole(ours) or not theirs:
        return None
    own, goal = summarize(ours.samples).median, _TIMES_RAY_SERVE if row.key in _SMALL else None
    if row.better is Better.HIGHER:
        return Comparison(own / max(theirs), goal)
    return Comparison(min(theirs) / own, goal)


def are_met(rows: Iterable[Row], outcomes: Outcomes) -> bool:
    """Tell whether every goal of a comparison that was measured is met."""
    found = [compare(row, outcomes) for row in rows for compare in (by_local, by_ray_serve)]
    return all(each is None or each.met for each in found)


def _is_whole(outcome: Outcome) -> bool:
    return outcome.error is None and bool(outcome.samples)
