from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from tests.props import strategies as own

from remora.core.placement import Capacity, Demand, Placement, assign
from remora.types import NodeID, ReplicaID


@given(own.demands(), own.nodes())
def test_each_demand_is_placed_or_explained(demands: list[Demand], nodes: list[Capacity]) -> None:
    placed = assign(demands, nodes)
    assert {demand.replica_id for demand in demands} == {*placed.assigned, *placed.unplaced}
    assert not placed.assigned.keys() & placed.unplaced.keys()
    assert all(placed.unplaced.values())


@given(own.demands(), own.nodes())
def test_capacity_is_never_exceeded(demands: list[Demand], nodes: list[Capacity]) -> None:
    placed = assign(demands, nodes)
    totals = {node.node_id: node for node in nodes}
    used: Counter[tuple[NodeID, str]] = Counter()
    gpus: Counter[tuple[NodeID, int]] = Counter()
    for demand in demands:
        place = placed.assigned.get(demand.replica_id)
        if place is None:
            continue
        assert not totals[place.node_id].draining
        wanted = demand.resources.get("GPU", 0.0)
        assert (
            len(place.gpus) == len(set(place.gpus)) == (int(wanted) if wanted >= 1 else wanted > 0)
        )
        for name, amount in demand.resources.items():
            used[place.node_id, name] += amount  # type: ignore[assignment]
        for gpu in place.gpus:
            gpus[place.node_id, gpu] += min(wanted, 1.0)  # type: ignore[assignment]
    for (node_id, name), amount in used.items():
        assert amount <= totals[node_id].total.get(name, 0.0) + 1e-9
    assert all(share <= 1.0 + 1e-9 for share in gpus.values())


@given(own.demands(), own.nodes(), st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(
    demands: list[Demand], nodes: list[Capacity], rng: random.Random
) -> None:
    shuffled = list(nodes)
    rng.shuffle(shuffled)
    assert assign(demands, nodes) == assign(demands, shuffled)


def placed_on(nodes: list[Capacity], *resources: dict[str, float]) -> Placement:
    return assign(
        [Demand(ReplicaID(f"a/d#{index}"), each) for index, each in enumerate(resources)], nodes
    )


def test_what_states_nothing_always_fits_and_is_spread() -> None:
    nodes = [Capacity(NodeID("a"), {}), Capacity(NodeID("b"), {})]
    placed = placed_on(nodes, {}, {}, {}, {})
    assert Counter(place.node_id for place in placed.assigned.values()) == {"a": 2, "b": 2}


def test_shares_of_a_gpu_are_put_together() -> None:
    placed = placed_on(
        [Capacity(NodeID("a"), {"GPU": 2.0})], {"GPU": 0.5}, {"GPU": 0.5}, {"GPU": 1.0}
    )
    assert [place.gpus for place in placed.assigned.values()] == [(0,), (0,), (1,)]


def test_the_reason_has_the_numbers() -> None:
    node = Capacity(NodeID("a"), {"CPU": 4.0, "GPU": 1.0})
    assert (
        "CPU: 8 needed, 4 free of 4" in placed_on([node], {"CPU": 8.0}).unplaced[ReplicaID("a/d#0")]
    )
    assert "tpu: 1 needed, 0 free of 0" in next(
        iter(placed_on([node], {"tpu": 1.0}).unplaced.values())
    )
    assert "neither a share" in next(iter(placed_on([node], {"GPU": 1.5}).unplaced.values()))
    assert "no node that takes" in next(iter(placed_on([], {}).unplaced.values()))
    two = [Capacity(NodeID("a"), {"CPU": 4.0}), Capacity(NodeID("b"), {"memory": 8.0})]
    assert "no node has all of CPU=2, memory=4 free together" in next(
        iter(placed_on(two, {"CPU": 2.0, "memory": 4.0}).unplaced.values())
    )
