"""Bounds on the number of replicas, with the share of capacity that is switched on.

Rules: pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from remora.options.autoscaling import AutoscalingConfig


def scaled(num: int, capacity: float | None) -> int:
    """Take a share of `num` replicas.

    Args:
        num: replicas, >= 0.
        capacity: per cent, 0..100; None: all.

    Pure. Invariants: half a replica is one; at least 1 unless either is 0; never grows when
    `capacity` shrinks.
    """
    if capacity is None or num == 0:
        return num
    if capacity == 0:
        return 0
    return max(1, math.floor(num * capacity / 100 + 0.5))


def whole_gangs(num: int, gang: int) -> int:
    """Round up to whole gangs of so many: one that is short serves nobody. Pure."""
    return num if gang == 1 else -(-num // gang) * gang


@dataclass(frozen=True)
class Bounds:
    """At least and at most so many replicas, in whole gangs; `low <= high`."""

    low: int
    high: int
    gang: int = 1

    def clip(self, num: int) -> int:
        """The nearest number within that is made of whole gangs, more rather than less. Pure."""
        low, gang = whole_gangs(self.low, self.gang), self.gang
        high = max(low, self.high // gang * gang)
        return max(low, min(high, whole_gangs(num, gang)))


def bounds_of(
    config: AutoscalingConfig,
    capacity: float | None = None,
    *,
    growing: bool = False,
    gang: int = 1,
) -> Bounds:
    """Say between which numbers a deployment is scaled.

    Args:
        config: of the deployment.
        capacity: per cent of it that is switched on; None: all.
        growing: that share is being raised: nothing begins below `initial_replicas`.
        gang: replicas that come and go together.

    Pure.
    """
    low = config.first_replicas if growing else config.min_replicas
    high = scaled(config.max_replicas, capacity)
    return Bounds(min(scaled(low, capacity), high), high, gang)
