"""Which replicas suit a request for one of many models.

A replica that holds the model answers at once, any other has to load it first, which costs
seconds and may push out a model that others want. So: those that hold it, then those that hold
the fewest. A model that is asked for so much that its holders are full, or far busier than the
others, spreads to one more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remora.core.routing import C
from remora.types import ReplicaID

#: A holder is left alone when it is busier than this many times the idlest other, …
_FACTOR = 2
#: … and this many requests more: loading a model for a short burst does not pay.
_MARGIN = 8
#: Models whose loading is expected somewhere.
_MAX_EXPECTED = 1024


def narrow(
    model_id: str, candidates: Sequence[C], expected: ReplicaID | None = None
) -> Sequence[C]:
    """Leave those of `candidates` that suit a model best. Pure.

    Args:
        model_id: what the request asks for.
        candidates: replicas that may take it.
        expected: the replica that was last sent to load the model, if it has not said yet
            that it holds it.

    Returns:
        at least one of `candidates`, if there is any.
    """
    holders, others = _split(candidates, lambda c: model_id in c.model_ids)
    if not holders and expected is not None:
        holders, others = _split(candidates, lambda c: c.replica_id == expected)
    if not holders:
        return fewest_models(candidates)
    if others and _are_overrun(holders, others):
        return fewest_models(others)
    return holders


def fewest_models(candidates: Sequence[C]) -> Sequence[C]:
    """Leave those that hold the fewest models. Pure."""
    fewest = min((len(c.model_ids) for c in candidates), default=0)
    return [c for c in candidates if len(c.model_ids) == fewest]


def _split(candidates: Sequence[C], suits: Callable[[C], bool]) -> tuple[list[C], list[C]]:
    chosen: list[C] = []
    others: list[C] = []
    for candidate in candidates:
        (chosen if suits(candidate) else others).append(candidate)
    return chosen, others


def _are_overrun(holders: Sequence[C], others: Sequence[C]) -> bool:
    idlest = min(c.load for c in others)
    return min(c.load for c in holders) > _FACTOR * idlest + _MARGIN


class ModelAffinity:
    """`narrow`, remembering where a model was last sent to be loaded.

    Until a replica has said that it holds a model, every other request for it would go to
    another replica, and each of them would load it.
    """

    __slots__ = ("_expected",)

    def __init__(self) -> None:
        self._expected: dict[str, ReplicaID] = {}

    def narrow(self, model_id: str, candidates: Sequence[C]) -> Sequence[C]:
        """Leave those of `candidates` that suit a model best."""
        return narrow(model_id, candidates, self._expected.get(model_id))

    def note(self, model_id: str, chosen: C) -> None:
        """Remember that `chosen` gets a request for a model."""
        expected = self._expected
        if model_id in chosen.model_ids:
            expected.pop(model_id, None)
            return
        expected[model_id] = chosen.replica_id
        if len(expected) > _MAX_EXPECTED:
            del expected[next(iter(expected))]
