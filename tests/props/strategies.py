"""Values of the pure modules, for Hypothesis."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from remora.core.placement import Capacity, Demand
from remora.core.replica_state import ReplicaState
from remora.core.rollout import Bounds, Member
from remora.core.snapshot import AppRoute, DeploymentRoute, ReplicaRoute, Snapshot
from remora.options.resources import STRATEGIES
from remora.types import DeploymentID, NodeID, ReplicaID

names = st.sampled_from(["a", "b", "c", "d"])

member_states = st.sampled_from(
    [ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.RUNNING, ReplicaState.DRAINING]
)


gang_sizes = st.sampled_from([1, 1, 2, 3, 5])


@dataclass
class Rollout:
    """What a roll-out sees and wants: arguments of `rollout.plan`."""

    members: list[Member]
    target: int
    limits: Bounds
    before: int


@st.composite
def rollouts(draw: st.DrawFn, min_target: int = 0) -> Rollout:
    """Replicas of one deployment, or gangs of them, old ones of any size, each with a rank of its own."""
    size = draw(gang_sizes)
    old_sizes = st.just(1) if draw(st.booleans()) else gang_sizes
    kinds = draw(st.lists(st.tuples(member_states, st.booleans(), old_sizes), max_size=12))
    return Rollout(
        [
            Member(ReplicaID(f"app/d#{rank}"), state, current, rank, size if current else old_size)
            for rank, (state, current, old_size) in enumerate(kinds)
        ],
        draw(st.integers(min_target, 8)) * size,
        Bounds(draw(st.integers(1, 5)) * size, draw(st.integers(1, 5)) * size, size),
        draw(st.integers(0, 8)) * draw(gang_sizes),
    )


amounts = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.0])
resources = st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "tpu"]), amounts)


selectors = st.dictionaries(
    st.sampled_from(["zone", "kind"]),
    st.sampled_from(["a", "!a", "in(a,b)", "!in(a,b)"]),
    max_size=1,
)


@st.composite
def nodes(draw: st.DrawFn) -> list[Capacity]:
    """Empty nodes with names of their own."""
    count = draw(st.integers(0, 4))
    return [
        Capacity(
            NodeID(f"n{index}"),
            draw(
                st.dictionaries(
                    st.sampled_from(["CPU", "GPU", "memory"]),
                    st.sampled_from([0.0, 1.0, 2.0, 4.0]),
                )
            ),
            draining=draw(st.integers(0, 5)) == 0,
            refusal=draw(st.sampled_from(["", "", "", "", "another version"])),
            labels=draw(st.dictionaries(st.just("zone"), st.sampled_from(["a", "b", "c"]))),
        )
        for index in range(count)
    ]


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    """Replicas that want a place."""
    count = draw(st.integers(0, 6))
    return [
        Demand(
            ReplicaID(f"app/d#{index}"),
            tuple(draw(st.lists(resources, min_size=1, max_size=3))),
            draw(st.sampled_from(["app/d", "app/e"])),
            tuple(draw(st.lists(selectors, min_size=1, max_size=2))),
            strategy=draw(st.sampled_from(STRATEGIES)),
            max_per_node=draw(st.sampled_from([None, None, 1, 2])),
        )
        for index in range(count)
    ]


routes = st.builds(
    DeploymentRoute,
    replicas=st.lists(
        st.builds(ReplicaRoute, st.builds(ReplicaID, names), st.just("unix:/x")), max_size=3
    ).map(tuple),
    max_ongoing_requests=st.integers(1, 3),
    unavailable=st.sampled_from(["", "it failed"]),
)
snapshots = st.builds(
    Snapshot,
    version=st.integers(0, 100),
    apps=st.dictionaries(
        names, st.builds(AppRoute, names, st.none() | st.sampled_from(["/", "/x"]), names)
    ),
    deployments=st.dictionaries(st.builds(DeploymentID, names, names), routes),
    draining=st.sampled_from([(), (NodeID("n1"),), (NodeID("n1"), NodeID("n2"))]),
)
