"""Power of two choices: look at two replicas picked at random, take the less loaded.

Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001): two
samples bring the longest queue down exponentially, a third adds little.

This is the default policy, and stands in the way of every call: what only some requests need is
looked at after the cheap cases.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from remora.core.routing import C
from remora.core.routing.multiplex import ModelAffinity
from remora.wire.messages import Envelope


class PowerOfTwo:
    """Of two candidates the less loaded wins; a request for a model goes where that model is."""

    __slots__ = ("_models",)

    def __init__(self) -> None:
        self._models = ModelAffinity()

    def choose(self, request: Envelope, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Pick one; None only when there is no candidate."""
        count = len(candidates)
        if count < 2:
            return candidates[0] if count else None
        if request.multiplexed_model_id:
            return self._choose_for_model(request.multiplexed_model_id, candidates, rng)
        first = int(rng.random() * count)
        second = int(rng.random() * (count - 1))
        if second >= first:
            second += 1
        one, other = candidates[first], candidates[second]
        return one if one.load <= other.load else other

    def keep(self, members: Sequence[C]) -> None:
        """Nothing to note: candidates are enough."""

    def _choose_for_model(
        self, model_id: str, candidates: Sequence[C], rng: random.Random
    ) -> C | None:
        chosen = less_loaded(self._models.narrow(model_id, candidates), rng)
        if chosen is not None:
            self._models.note(model_id, chosen)
        return chosen


def less_loaded(candidates: Sequence[C], rng: random.Random) -> C | None:
    """Pick two by chance and take the less loaded. Pure but for `rng`."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    one, other = rng.sample(candidates, 2)
    return one if one.load <= other.load else other
