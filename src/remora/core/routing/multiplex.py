"""Which replicas suit a request for one of many models.

A replica that holds the model answers at once, any other has to load it first, which costs
seconds and may push out a model that others want. So:

1. A replica that holds the model.
2. If none does, one of those that hold the fewest; of these always the same one, by a hash of model
   and replica. So routers that know nothing of each other send a model to one place, and one
   that comes again goes where it was.
3. A model whose holders are far busier than another replica spreads to that one.
4. When its holders are full, and nobody is idle enough for that, a request waits for them.
   Without that, every request that finds its holder full would push out a model that somebody else
   waits for, and the more that happens, the longer everything takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from remora.core.routing import C, Candidate
from remora.types import ReplicaID

#: A holder is left alone when it is busier than this many times the idlest other, …
_FACTOR = 2
#: … and, while it takes requests, this many more: loading a model for a short burst does not pay.
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
    holders = [c for c in candidates if model_id in c.model_ids]
    if not holders and expected is not None:
        holders = [c for c in candidates if c.replica_id == expected]
    if not holders:
        return home(model_id, candidates)
    others = [c for c in candidates if c not in holders]
    if others and min(c.load for c in holders) > _FACTOR * _idlest(others) + _MARGIN:
        return home(model_id, others)
    return holders


def fewest_models(candidates: Sequence[C]) -> Sequence[C]:
    """Leave those that hold the fewest models. Pure."""
    fewest = min((len(c.model_ids) for c in candidates), default=0)
    return [c for c in candidates if len(c.model_ids) == fewest]


def home(model_id: str, candidates: Sequence[C]) -> Sequence[C]:
    """Leave the one that is to load a model: the same for everybody who asks. Pure.

    One that is far busier than the idlest of those with the fewest models is passed by.
    """
    fewest = fewest_models(candidates)
    if len(fewest) < 2:
        return fewest
    bound = _FACTOR * _idlest(fewest) + _MARGIN
    able = [c for c in fewest if c.load <= bound]
    return [max(able, key=lambda c: _rank(model_id, c.replica_id))]


def _rank(model_id: str, replica_id: str) -> int:
    """A number that looks like chance and is the same in every process."""
    mixed = crc32(model_id.encode("utf-8", "replace"), crc32(replica_id.encode()))
    # Checksums of equal texts behind different ones differ by a constant: this undoes that.
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return mixed ^ mixed >> 16


def _idlest(candidates: Sequence[Candidate]) -> int:
    return min(c.load for c in candidates)


class ModelAffinity:
    """`narrow`, with a memory and a view of replicas that are full.

    Until a replica has said that it holds a model, every other request for it would go to
    another replica, and each of them would load it.
    """

    __slots__ = ("_expected", "_members")

    def __init__(self) -> None:
        self._expected: dict[str, ReplicaID] = {}
        self._members: Sequence[Candidate] = ()

    def keep(self, members: Sequence[Candidate]) -> None:
        """Take note of all replicas there are now, those that are full as well."""
        self._members = members

    def narrow(self, model_id: str, candidates: Sequence[C]) -> Sequence[C]:
        """Leave those of `candidates` that suit a model best; none: the request had better wait."""
        if candidates and not any(model_id in c.model_ids for c in candidates):
            full = [m.load for m in self._members if model_id in m.model_ids]
            if full and min(full) <= _FACTOR * _idlest(candidates):
                return ()
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
