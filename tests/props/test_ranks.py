from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from remora.core.ranks import Ranks, ranks_of, ranks_of_new, settled
from remora.core.replica_state import Replica
from remora.types import NodeID, ReplicaID

#: Homes of new replicas, and which of the living dies before each.
lives = st.lists(
    st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.none() | st.integers(0, 20)), max_size=14
)


def grown(life: list[tuple[str, int | None]]) -> list[Replica]:
    """Replicas after births and deaths."""
    living: list[Replica] = []
    for number, (home, death) in enumerate(life):
        if death is not None and living:
            living.pop(death % len(living))
        living.append(born(number, NodeID(home), living))
    return living


def born(number: int, home: NodeID, living: list[Replica]) -> Replica:
    ranks = ranks_of_new(living, home)
    name = ReplicaID(f"a/d#{number}")
    return Replica(replica_id=name, version="1", node_id=home, **ranks._asdict())


def after(living: list[Replica]) -> list[Replica]:
    moved = settled(living)
    return [
        msgspec.structs.replace(each, **moved.get(each.replica_id, ranks_of(each))._asdict())
        for each in living
    ]


@given(lives)
def test_no_two_living_replicas_have_one_rank(life: list[tuple[str, int | None]]) -> None:
    living = grown(life)
    assert len({replica.rank for replica in living}) == len(living)
    assert len({(each.node_id, each.local_rank) for each in living}) == len(living)


@given(lives)
def test_settled_ranks_have_no_gaps(life: list[tuple[str, int | None]]) -> None:
    living = after(grown(life))
    assert sorted(replica.rank for replica in living) == list(range(len(living)))
    nodes = {replica.node_id: replica.node_rank for replica in living}
    assert sorted(nodes.values()) == list(range(len(nodes)))
    assert all(nodes[replica.node_id] == replica.node_rank for replica in living)
    for node_id in nodes:
        here = [replica.local_rank for replica in living if replica.node_id == node_id]
        assert sorted(here) == list(range(len(here)))


@given(lives)
def test_who_is_inside_the_range_keeps_its_rank(life: list[tuple[str, int | None]]) -> None:
    living = grown(life)
    moved = settled(living)
    for replica in living:
        if replica.rank < len(living) and replica.replica_id in moved:
            assert moved[replica.replica_id].rank == replica.rank
    assert settled(after(living)) == {}


def test_the_successor_of_a_crashed_replica_takes_its_rank() -> None:
    living = grown([("n1", None), ("n1", None), ("n2", None)])
    gone = living.pop(1)
    assert ranks_of_new(living, gone.node_id) == ranks_of(gone) == Ranks(1, 0, 1)
