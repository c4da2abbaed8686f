"""Demand as a decision sees it: the whole window, or what came since a burst began.

Theory of operation: a mean over a long window sees a burst late, because the quiet before it
counts for as long. So a burst has a moment, *the rise*, when clearly more was asked than the
target is made for; while it is one, growth is decided on the mean since then. A blip ends by
itself, because that mean falls. Shrinking is decided on the whole window, but a rise that was
answered counts in full for as long as it is in it.

Rules: pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from remora.core.autoscale.demand import Demand
from remora.core.autoscale.given import Memory
from remora.options.autoscaling import AutoscalingConfig
from remora.types import Seconds

#: So much more than the target is made for is a burst; less is chance, which takes the whole
#: window to tell from a trend.
BURST = 1.25


@dataclass(frozen=True)
class Window:
    """Demand as a decision sees it.

    Attributes:
        growing: of the whole window, or since the rise if that is more.
        shrinking: of the whole window, or since the last answered rise if that is more.
        queued: the share of `growing` that waits.
        length_s: of the window that `growing` is from.
        rise_s: when more was asked than the target is made for; None: not lately.
        by_rise: `growing` is the demand since then.
        begins: just now; whatever was before it has faded, and its delay with it.
    """

    growing: float
    shrinking: float
    queued: float
    length_s: Seconds
    rise_s: Seconds | None
    by_rise: bool
    begins: bool


def look(
    config: AutoscalingConfig, demand: Demand, memory: Memory, target: int, now: Seconds
) -> Window:
    """Aggregate demand for a decision. Pure. Invariants: `shrinking` is at least the window's."""
    how = config.aggregation_function
    start = max(now - config.look_back_period_s, demand.since_s)
    whole = demand.total.aggregate(how, start, now)
    made_for = config.target_ongoing_requests * max(0, target - config.spare_replicas)
    burst = made_for * BURST * (1 - 1e-9)  # a mean of the same numbers is never quite the same
    rise = memory.rise_s
    if rise is not None and rise < start:
        rise = None
    risen = whole if rise is None else demand.total.aggregate(how, rise, now)
    present = demand.total.value
    if (rise is None or risen < burst) and present > 0 and present >= burst:
        rise, risen = now, present
    by_rise = risen > whole and risen >= burst
    begin = rise if by_rise and rise is not None else start
    answered = memory.answered_s
    held = whole
    if answered is not None and answered > start:
        held = max(whole, demand.total.aggregate(how, answered, now))
    return Window(
        growing=risen if by_rise else whole,
        shrinking=held,
        queued=demand.queued.aggregate(how, begin, now),
        length_s=now - begin,
        rise_s=rise,
        by_rise=by_rise,
        begins=by_rise and rise == now and whole <= made_for,
    )
