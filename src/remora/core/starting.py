"""New replicas: where they go, what is reserved for them, which numbers they get.

Rules: pure. How many are wanted, and when, is decided in `reconcile.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from remora.config import DeploymentConfig
from remora.core import placement
from remora.core.draft import Draft
from remora.core.placement import Capacity, Demand, Place, Placement
from remora.core.ranks import ranks_of_new
from remora.core.replica_state import LIVE, Replica
from remora.core.state import Application, ControllerState, Deployment, Target
from remora.types import DeploymentID, NodeID, ReplicaID, replica_id
from remora.wire.holds import Gang, Hold

#: As in `engine.base`, which is above this layer.
ACCELERATOR_LABEL = "ray.io/accelerator-type"


def demand_of(wanted: ReplicaID, deployment: DeploymentID, config: DeploymentConfig) -> Demand:
    """Say what a replica with these options wants. Pure."""
    selectors: Sequence[dict[str, str]] = (config.label_selector, *config.fallback_selectors)
    return Demand(
        wanted,
        config.placement_group_bundles or (config.resources,),
        str(deployment),
        tuple(selectors),
        config.placement_group_bundle_label_selector,
        config.placement_group_strategy,
        config.max_replicas_per_node,
    )


def never_fits(
    wanted: Iterable[tuple[DeploymentID, DeploymentConfig]], state: ControllerState
) -> str:
    """Say why all of these deployments together could never be held; empty: they could.

    Pure. Only where the nodes are known and no other will join.
    """
    if not state.fixed_nodes or not state.nodes:
        return ""
    counts: dict[str, int] = {}
    gangs: list[list[Demand]] = []
    for deployment, config in wanted:
        if not _asks_for_anything(config):
            continue
        size = config.gang_size
        counts[str(deployment)] = _fewest(config)
        for first in range(0, _fewest(config), size):
            ids = [replica_id(deployment, str(first + number)) for number in range(size)]
            gangs.append([demand_of(each, deployment, config) for each in ids])
    nodes = [_empty(node_id, state) for node_id in state.nodes]
    whose, why = placement.never_fits(gangs, nodes)
    # Whoever has the room in this account never ran.
    why = why.replace("held by", "asked for by")
    return f"{whose} with {counts[whose]} replica(s): {why}" if why else ""


def _fewest(config: DeploymentConfig) -> int:
    """How many replicas there will be in any case."""
    autoscaling = config.autoscaling_config
    return config.num_replicas if autoscaling is None else max(1, autoscaling.min_replicas)


def _asks_for_anything(config: DeploymentConfig) -> bool:
    return bool(
        any(config.resources.values())
        or config.placement_group_bundles
        or config.max_replicas_per_node
        or config.label_selector
    )


def is_pinned(config: DeploymentConfig) -> bool:
    """Say whether a replica must be where it was placed: elsewhere may break what was asked. Pure."""
    return bool(
        config.max_replicas_per_node
        or config.gang_scheduling_config
        or config.label_selector
        or any(config.placement_group_bundle_label_selector)
    )


def _empty(node_id: NodeID, state: ControllerState) -> Capacity:
    node = state.nodes[node_id]
    return Capacity(
        node_id,
        dict(node.resources),
        draining=node.draining,
        refusal=node.refusal,
        labels=node.labels,
    )


def capacities(
    state: ControllerState, without: frozenset[ReplicaID] = frozenset()
) -> dict[NodeID, Capacity]:
    """Say what the nodes have and who holds it, as if the replicas `without` were gone. Pure."""
    holders: dict[NodeID, list[tuple[str, tuple[Hold, ...]]]] = {key: [] for key in state.nodes}
    counts: dict[NodeID, dict[str, int]] = {key: {} for key in state.nodes}
    for app in state.applications.values():
        for deployment in app.deployments.values():
            owner = str(DeploymentID(deployment.name, app.name))
            for replica in deployment.replicas.values():
                if replica.state not in LIVE or replica.replica_id in without:
                    continue
                if (here := counts.get(replica.node_id)) is not None:
                    here[owner] = here.get(owner, 0) + 1
                # Most hold nothing, and there may be thousands of them.
                if replica.resources or replica.other_holds:
                    for node_id in {hold.node_id for hold in replica.holds} & holders.keys():
                        holders[node_id].append((owner, replica.holds))
    return {
        node_id: placement.hold(
            replace(
                _empty(node_id, state),
                num_replicas=sum(counts[node_id].values()),
                replicas_of=counts[node_id],
            ),
            those,
        )
        for node_id, those in holders.items()
    }


def _known_capacities(draft: Draft) -> dict[NodeID, Capacity]:
    """Work the capacities out once in a step; they are kept up to date after that."""
    if draft.capacities is None:
        draft.capacities = capacities(draft.state)
    return draft.capacities


def start(
    draft: Draft, app: Application, deployment: Deployment, target: Target, count: int
) -> bool:
    """Decide `count` new replicas, or gangs of them; False: some found no place."""
    identity = DeploymentID(deployment.name, app.name)
    size = target.config.gang_size
    gangs = _new_ids(draft, identity, count, size)
    placed = None
    if count:
        nodes = list(_known_capacities(draft).values())
        placed = _place(gangs, identity, target.config, nodes)
    assigned = placed.assigned if placed else {}
    unplaced = list(placed.unplaced.values()) if placed else []
    if unplaced or draft.pacing(app.name, deployment).num_unplaced:
        reason = unplaced[0] if unplaced else ""
        draft.pace(app.name, deployment, unplaced=reason, num_unplaced=len(unplaced))
    for gang in gangs:
        for number, new_id in enumerate(gang):
            if new_id in assigned:
                member = Gang(gang[0], number, tuple(gang)) if size > 1 else None
                _add(draft, app, deployment, target, new_id, assigned[new_id], member)
    if assigned:
        # An id is never used twice, also not the ones that found no place.
        draft.state.next_replica += count * size
    return not unplaced


def makes_room(
    draft: Draft,
    app: Application,
    deployment: Deployment,
    target: Target,
    old: Sequence[Sequence[Replica]],
) -> list[Replica]:
    """Say which replicas of the `old` gangs must go first, because old and new have no room together.

    Empty: it would not help, or nodes may join. Where a machine is full, an update can only
    take the place of what it replaces.
    """
    if not draft.state.fixed_nodes:
        return []
    identity = DeploymentID(deployment.name, app.name)
    gangs = _new_ids(draft, identity, 1, target.config.gang_size)
    for number in range(1, len(old) + 1):
        going = [replica for gang in old[:number] for replica in gang]
        gone = frozenset(replica.replica_id for replica in going)
        nodes = list(capacities(draft.state, gone).values())
        if not _place(gangs, identity, target.config, nodes).unplaced:
            return going
    return []


def _new_ids(draft: Draft, identity: DeploymentID, count: int, size: int) -> list[list[ReplicaID]]:
    first, salt = draft.state.next_replica, draft.state.salt
    return [
        [
            replica_id(identity, f"{salt}{first + number * size + member:x}")
            for member in range(size)
        ]
        for number in range(count)
    ]


def _place(
    gangs: Sequence[Sequence[ReplicaID]],
    identity: DeploymentID,
    config: DeploymentConfig,
    nodes: list[Capacity],
) -> Placement:
    whole = Placement()
    for gang in gangs:
        demands = [demand_of(each, identity, config) for each in gang]
        if config.gang_scheduling_config is None:
            placed = placement.assign(demands, nodes)
        else:
            strategy = config.gang_scheduling_config.gang_placement_strategy
            placed = placement.assign_gang(demands, nodes, strategy)
        whole.assigned.update(placed.assigned)
        whole.unplaced.update(placed.unplaced)
        for place in placed.assigned.values():
            nodes = [placement.take(node, place.holds, str(identity)) for node in nodes]
    return whole


def _add(
    draft: Draft,
    app: Application,
    deployment: Deployment,
    target: Target,
    new_id: ReplicaID,
    place: Place,
    gang: Gang | None,
) -> None:
    own, *others = place.holds
    ranks = ranks_of_new(deployment.replicas.values(), own.node_id)
    replica = Replica(
        replica_id=new_id,
        version=target.version,
        config_key=target.config_key,
        node_id=own.node_id,
        resources=own.resources,
        gpus=own.gpus,
        other_holds=tuple(others),
        gang=gang,
        rank=ranks.rank,
        node_rank=ranks.node_rank,
        local_rank=ranks.local_rank,
        since_s=draft.now,
    )
    draft.add(app, deployment, replica)
    nodes = _known_capacities(draft)
    owner = str(DeploymentID(deployment.name, app.name))
    for node_id in {hold.node_id for hold in place.holds} & nodes.keys():
        nodes[node_id] = placement.take(nodes[node_id], place.holds, owner)
