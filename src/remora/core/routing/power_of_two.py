"""Power of two choices: look at two replicas picked at random, take the less loaded.

Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001): two
samples bring the longest queue down exponentially, a third adds little.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from remora.core.routing import C


def choose(candidates: Sequence[C], rng: random.Random) -> C | None:
    """Pure but for `rng`. Of two candidates the less loaded wins; equal ones win by chance."""
    count = len(candidates)
    if count < 2:
        return candidates[0] if count else None
    first = int(rng.random() * count)
    second = int(rng.random() * (count - 1))
    if second >= first:
        second += 1
    one, other = candidates[first], candidates[second]
    return one if one.load <= other.load else other
