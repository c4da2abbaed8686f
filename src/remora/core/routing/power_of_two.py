"""Power of two choices: look at two replicas picked at random, take the less loaded.

Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001): two
samples bring the longest queue down exponentially, a third adds little.

This is the default policy, and stands in the way of every call: what only some requests need is
looked at after the cheap cases.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from remora.core.routing import C, locality
from remora.core.routing.multiplex import ModelAffinity
from remora.types import LOCAL_NODE
from remora.wire.messages import Envelope


class PowerOfTwo:
    """Of two candidates the less loaded wins.

    A request for a model goes where that model is. Replicas on the caller's node are preferred,
    then those in its zone, when there are others.
    """

    __slots__ = ("_is_spread", "_models", "_node_id", "_zone")

    waits_by_model: ClassVar[bool] = True

    def __init__(self, node_id: str = LOCAL_NODE, availability_zone: str = "") -> None:
        self._node_id = node_id
        self._zone = availability_zone
        #: Not all replicas are equally near.
        self._is_spread = False
        self._models = ModelAffinity()

    def choose(self, request: Envelope, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Pick one; None when there is none, or one that is full suits the request far better."""
        count = len(candidates)
        if not count:
            return None
        if request.multiplexed_model_id or self._is_spread:
            return self._choose_from_few(request.multiplexed_model_id, candidates, rng)
        if count == 1:
            return candidates[0]
        # One random number for both: it is a place among all pairs.
        rest = count - 1
        pair = int(rng.random() * (count * rest))
        first = pair // rest
        second = pair % rest
        if second >= first:
            second += 1
        one, other = candidates[first], candidates[second]
        return one if one.load <= other.load else other

    def keep(self, members: Sequence[C]) -> None:
        """Note which replicas there are, and whether nearness makes a difference."""
        self._models.keep(members)
        self._is_spread = len(locality.rank(members, self._node_id, self._zone)) > 1

    def _choose_from_few(
        self, model_id: str, candidates: Sequence[C], rng: random.Random
    ) -> C | None:
        # A model is a matter of seconds, nearness one of microseconds.
        if model_id:
            candidates = self._models.narrow(model_id, candidates)
        if self._is_spread and candidates:
            candidates = locality.rank(candidates, self._node_id, self._zone)[0]
        chosen = less_loaded(candidates, rng)
        if model_id and chosen is not None:
            self._models.note(model_id, chosen)
        return chosen


def less_loaded(candidates: Sequence[C], rng: random.Random) -> C | None:
    """Pick two by chance and take the less loaded. Pure but for `rng`."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    one, other = rng.sample(candidates, 2)
    return one if one.load <= other.load else other
