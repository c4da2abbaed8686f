from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.props import strategies as own

from remora.core.labels import matches
from remora.core.placement import Capacity, Demand, Placement, assign, assign_gang, never_fits, take
from remora.types import NodeID, ReplicaID


@given(own.demands(), own.nodes())
def test_each_demand_is_placed_or_explained(demands: list[Demand], nodes: list[Capacity]) -> None:
    placed = assign(demands, nodes)
    assert {demand.replica_id for demand in demands} == {*placed.assigned, *placed.unplaced}
    assert not placed.assigned.keys() & placed.unplaced.keys()
    assert all(placed.unplaced.values())
    # What is missing may be on a node that takes nothing new.
    refusing = [node.node_id for node in nodes if node.refusal]
    for why in placed.unplaced.values():
        assert ("no processes: " in why) == bool(refusing)
        assert all(f"{node_id}: another version" in why for node_id in refusing)


def check_capacity(demands: list[Demand], nodes: list[Capacity], placed: Placement) -> None:
    totals = {node.node_id: node for node in nodes}
    used: dict[tuple[NodeID, str], float] = {}
    gpus: dict[tuple[NodeID, int], float] = {}
    for demand in demands:
        place = placed.assigned.get(demand.replica_id)
        if place is None:
            continue
        assert [hold.resources for hold in place.holds] == list(demand.bundles)
        for hold in place.holds:
            assert totals[hold.node_id].takes_new
            wanted = hold.resources.get("GPU", 0.0)
            assert len(hold.gpus) == len(set(hold.gpus))
            assert len(hold.gpus) == (int(wanted) if wanted >= 1 else wanted > 0)
            for name, amount in hold.resources.items():
                used[hold.node_id, name] = used.get((hold.node_id, name), 0.0) + amount
            for gpu in hold.gpus:
                share = gpus.get((hold.node_id, gpu), 0.0) + min(wanted, 1.0)
                gpus[hold.node_id, gpu] = share
    for (node_id, name), amount in used.items():
        assert amount <= totals[node_id].total.get(name, 0.0) + 1e-9
    assert all(share <= 1.0 + 1e-9 for share in gpus.values())


@given(own.demands(), own.nodes())
def test_capacity_is_never_exceeded(demands: list[Demand], nodes: list[Capacity]) -> None:
    check_capacity(demands, nodes, assign(demands, nodes))


@given(own.demands(), own.nodes())
def test_labels_limits_and_strategies_are_kept(
    demands: list[Demand], nodes: list[Capacity]
) -> None:
    placed = assign(demands, nodes)
    labels = {node.node_id: node.labels for node in nodes}
    homes: Counter[tuple[str, NodeID]] = Counter()
    for demand in demands:
        place = placed.assigned.get(demand.replica_id)
        if place is None:
            continue
        where = [hold.node_id for hold in place.holds]
        assert any(
            all(matches(labels[node], selector) for node in where) for selector in demand.selectors
        )
        if demand.strategy == "STRICT_PACK":
            assert len(set(where)) == 1
        if demand.strategy == "STRICT_SPREAD":
            assert len(set(where)) == len(where)
        if demand.max_per_node is not None:
            assert homes[demand.deployment, where[0]] < demand.max_per_node
        homes[demand.deployment, where[0]] += 1


@given(own.demands(), own.nodes(), st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(
    demands: list[Demand], nodes: list[Capacity], rng: random.Random
) -> None:
    shuffled = list(nodes)
    rng.shuffle(shuffled)
    assert assign(demands, nodes) == assign(demands, shuffled)


@given(own.demands(), own.nodes(), st.sampled_from(["PACK", "SPREAD"]))
def test_a_gang_finds_room_as_a_whole_or_not_at_all(
    demands: list[Demand], nodes: list[Capacity], strategy: str
) -> None:
    placed = assign_gang(demands, nodes, strategy)
    assert len(placed.assigned) in (0, len(demands))
    assert {demand.replica_id for demand in demands} == {*placed.assigned, *placed.unplaced}
    check_capacity(demands, nodes, placed)


@given(own.demands(), own.nodes())
def test_what_fits_now_could_ever_fit(demands: list[Demand], nodes: list[Capacity]) -> None:
    if not assign(demands, nodes).unplaced:
        assert never_fits([[demand] for demand in demands], nodes) == ("", "")


@given(own.demands(), own.nodes())
def test_what_is_held_by_others_does_not_count_for_ever(
    demands: list[Demand], nodes: list[Capacity]
) -> None:
    placed = assign(demands, nodes)
    full = nodes
    for place in placed.assigned.values():
        full = [take(node, place.holds, "other/d") for node in full]
    gangs = [[demand] for demand in demands]
    assert never_fits(gangs, full) == never_fits(gangs, nodes)


def placed_on(nodes: list[Capacity], *resources: dict[str, float]) -> Placement:
    return assign(
        [Demand(ReplicaID(f"a/d#{index}"), (each,)) for index, each in enumerate(resources)], nodes
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


def test_each_member_of_a_gang_has_all_its_bundles() -> None:
    bundles = ({"CPU": 1.0}, {"CPU": 1.0})
    demands = [Demand(ReplicaID(f"a/D#{number}"), bundles) for number in range(2)]
    placed = assign_gang(demands, [Capacity(NodeID("n"), {"CPU": 4.0})], "PACK")
    assert {len(place.holds) for place in placed.assigned.values()} == {2}
    # Enough for three bundles of four: not even one member starts.
    assert assign_gang(demands, [Capacity(NodeID("n"), {"CPU": 3.0})], "PACK").assigned == {}


def test_a_gang_is_packed_or_spread() -> None:
    nodes = [Capacity(NodeID(name), {"CPU": 4.0}) for name in "abc"]
    demands = [Demand(ReplicaID(f"a/d#{number}"), ({"CPU": 1.0},)) for number in range(3)]
    packed = assign_gang(demands, nodes, "PACK")
    assert {place.node_id for place in packed.assigned.values()} == {"a"}
    spread = assign_gang(demands, nodes, "SPREAD")
    assert {place.node_id for place in spread.assigned.values()} == {"a", "b", "c"}


def test_a_fallback_counts_where_no_node_has_the_first_labels() -> None:
    nodes = [Capacity(NodeID("a"), {}, labels={"zone": "eu"})]
    demand = Demand(ReplicaID("a/d#0"), ({},), selectors=({"zone": "us"}, {"zone": "in(eu,asia)"}))
    assert assign([demand], nodes).assigned[ReplicaID("a/d#0")].node_id == "a"


def reason(node: Capacity | list[Capacity], **wanted: float) -> str:
    nodes = node if isinstance(node, list) else [node]
    return placed_on(nodes, wanted).unplaced[ReplicaID("a/d#0")]


def test_the_reason_has_the_numbers() -> None:
    node = Capacity(NodeID("a"), {"CPU": 4.0, "GPU": 1.0, "memory": 2.0**33})
    assert "CPU: 8 needed, 4 free of 4" in reason(node, CPU=8.0)
    assert "tpu: 1 needed, 0 free of 0 (nodes have CPU, GPU, memory)" in reason(node, tpu=1.0)
    assert "memory: 16 GiB needed, 8 GiB free of 8 GiB" in reason(node, memory=2.0**34)
    assert "neither a share" in reason(node, GPU=1.5)
    assert "no node that takes" in reason([])
    two = [Capacity(NodeID("a"), {"CPU": 4.0}), Capacity(NodeID("b"), {"x": 8.0})]
    assert "no node has all of CPU=2, x=4 free together" in reason(two, CPU=2.0, x=4.0)


def test_the_reason_names_who_holds_what_is_missing() -> None:
    node = Capacity(NodeID("a"), {"CPU": 4.0})
    held = assign([Demand(ReplicaID("a/x#1"), ({"CPU": 3.0},), "a/x")], [node])
    node = take(node, held.assigned[ReplicaID("a/x#1")].holds, "a/x")
    assert "CPU: 2 needed, 1 free of 4 (held by a/x 3)" in reason(node, CPU=2.0)


def test_the_reason_says_when_gpus_are_free_only_in_parts() -> None:
    node = Capacity(NodeID("a"), {"GPU": 2.0}, {"GPU": 1.0}, {0: 0.5, 1: 0.5})
    assert "GPU=1 is free only in parts (GPU 0 of a: 0.5; GPU 1 of a: 0.5)" in reason(node, GPU=1.0)


@pytest.mark.parametrize(
    ("demand", "expected"),
    [
        (
            Demand(ReplicaID("d"), ({},), selectors=({"zone": "us"}, {"zone": "asia"})),
            r"no node has the labels for zone=us \(nor for 1 fallback\(s\)\); there are zone=eu",
        ),
        (
            Demand(ReplicaID("d"), ({"CPU": 1.0}, {"CPU": 1.0}), strategy="STRICT_SPREAD"),
            "STRICT_SPREAD needs a node for each of 2 bundles, and there are 1",
        ),
        (
            Demand(ReplicaID("d"), ({},), "a/x", max_per_node=1),
            r"max_replicas_per_node=1 is reached on the one node \(1 replicas\)",
        ),
    ],
)
def test_the_reason_says_which_rule_is_in_the_way(demand: Demand, expected: str) -> None:
    node = Capacity(
        NodeID("a"), {"CPU": 4.0}, labels={"zone": "eu"}, num_replicas=1, replicas_of={"a/x": 1}
    )
    assert re.search(expected, assign([demand], [node]).unplaced[ReplicaID("d")])
