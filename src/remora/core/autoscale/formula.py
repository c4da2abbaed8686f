"""The default policy: so many replicas that each has its target of requests.

Rules: pure.
"""

from __future__ import annotations

import math

from remora.options.autoscaling import AutoscalingConfig

#: A quotient that is a whole number but for rounding is that number.
_ROUNDING = 1e-9


def ceil(number: float) -> int:
    """Round up, but not for the error of a division. Pure."""
    return math.ceil(number - _ROUNDING)


def wanted(config: AutoscalingConfig, total: float, running: int, target: int) -> int:
    """Say how many replicas this demand asks for, before delays and bounds.

    Args:
        config: has the target of requests and the factors.
        total: requests, ongoing and waiting.
        running: replicas that run now, >= 0.
        target: replicas that there should be now, >= 0.

    Pure. Invariants: never falls as `total` grows; with factors of 1 it is `total` divided by
    the target of requests, rounded up, while any replica runs.
    """
    if running == 0:
        # Nobody knows what one replica can do before there is one.
        return max(ceil(config.up_factor), target) if total > 0 else target
    raw = total / config.target_ongoing_requests
    if raw > running:
        return ceil(running + config.up_factor * (raw - running))
    found = ceil(running + config.down_factor * (raw - running))
    if ceil(raw) < running and found >= running:
        # A small factor must not keep a deployment from ever getting smaller.
        return running - 1
    return max(0, found)


def explained(config: AutoscalingConfig, total: float, running: int, target: int) -> str:
    """Write the formula with its numbers, for people. Pure."""
    result = wanted(config, total, running, target)
    if running == 0:
        why = "somebody waits and no replica runs" if total > 0 else "nothing is asked"
        return f"{why}: {result}"
    goal = config.target_ongoing_requests
    raw = total / goal
    factor = config.up_factor if raw > running else config.down_factor
    if factor == 1.0:
        return f"ceil({total:.4g} requests / {goal:g} for each replica) = {result}"
    return (
        f"ceil({running} running + {factor:g} x ({total:.4g} requests / {goal:g} for each replica "
        f"- {running})) = {result}"
    )
