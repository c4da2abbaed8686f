"""Ranks of a deployment's replicas: 0, 1, 2 … without gaps, and the same for as long as possible.

A new replica takes the smallest numbers that nobody has, so the successor of one that crashed
takes its place. While a deployment changes, old and new replicas live side by side and numbers
go beyond the target; when it is settled, the ones beyond fill the gaps, and all others stay.

Rules: pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from remora.core.replica_state import Replica
from remora.types import NodeID, ReplicaID

_K = TypeVar("_K", bound=Hashable)


class Ranks(NamedTuple):
    """The three numbers of a replica: see `context.ReplicaRank`."""

    rank: int
    node_rank: int
    local_rank: int


def ranks_of(replica: Replica) -> Ranks:
    """Return the numbers that a replica has. Pure."""
    return Ranks(replica.rank, replica.node_rank, replica.local_rank)


def ranks_of_new(replicas: Iterable[Replica], node_id: NodeID) -> Ranks:
    """Choose the numbers of a new replica on `node_id` beside `replicas`. Pure."""
    those = list(replicas)
    here = [replica for replica in those if replica.node_id == node_id]
    node_rank = here[0].node_rank if here else _free({each.node_rank for each in those})
    return Ranks(
        _free({each.rank for each in those}), node_rank, _free({each.local_rank for each in here})
    )


def settled(replicas: Iterable[Replica]) -> dict[ReplicaID, Ranks]:
    """Close the gaps: return the new numbers of those replicas whose numbers change.

    Pure. Invariants: afterwards ranks are 0 … n-1, node ranks 0 … nodes-1, local ranks on each
    node 0 … replicas there - 1; whoever is inside of these ranges keeps its number.
    """
    those = {replica.replica_id: replica for replica in replicas}
    numbers = {replica.rank for replica in those.values()}
    if len({each.node_id for each in those.values()}) == 1 and len(numbers) == len(those):
        # Nearly always: one node, and nothing to do.
        last = len(those) - 1
        if all(
            max(each.rank, each.local_rank) <= last and not each.node_rank
            for each in those.values()
        ):
            return {}
    ranks = _dense({key: replica.rank for key, replica in those.items()})
    nodes = _dense({replica.node_id: replica.node_rank for replica in those.values()})
    local: dict[ReplicaID, int] = {}
    for node_id in nodes:
        here = {key: each.local_rank for key, each in those.items() if each.node_id == node_id}
        local |= _dense(here)
    found = {
        key: Ranks(ranks[key], nodes[replica.node_id], local[key]) for key, replica in those.items()
    }
    return {key: new for key, new in found.items() if new != ranks_of(those[key])}


def _free(taken: set[int]) -> int:
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _dense(numbers: Mapping[_K, int]) -> dict[_K, int]:
    """Renumber as few as possible so that 0 … n-1 are all there once."""
    kept: dict[int, _K] = {}
    for key, number in numbers.items():
        if number < len(numbers):
            kept.setdefault(number, key)
    gaps = iter(number for number in range(len(numbers)) if number not in kept)
    moved = sorted((number, str(key), key) for key, number in numbers.items())
    result = {key: number for number, key in kept.items()}
    for _, _, key in moved:
        if key not in result:
            result[key] = next(gaps)
    return result
