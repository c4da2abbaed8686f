"""Which node a new replica goes to, and why some find no place.

Rules: pure. Resources are names with amounts; `GPU` is special because a replica must know
which ones it may use: whole GPUs, or a share of one. What is reserved for a replica is one hold
on one node, or, for a placement group, a hold for each bundle; the replica is where the first
one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from remora.core import shortage
from remora.core.labels import matches
from remora.core.shortage import TOLERANCE, Capacity
from remora.types import NodeID, ReplicaID
from remora.wire.holds import Hold

__all__ = [
    "Capacity",
    "Demand",
    "Hold",
    "Place",
    "Placement",
    "assign",
    "assign_gang",
    "never_fits",
    "take",
]


@dataclass(frozen=True)
class Demand:
    """A replica that wants a place.

    Attributes:
        bundles: what it wants reserved, the replica itself with the first one.
        deployment: whose it is, `app/name`.
        selectors: what the labels of its nodes must be; the later ones count where no node
            fits those before.
        bundle_selectors: the same for each bundle besides, or one for all.
        strategy: how the bundles lie to each other.
        max_per_node: replicas of the deployment on one node; None: no limit.
    """

    replica_id: ReplicaID
    bundles: tuple[dict[str, float], ...]
    deployment: str = ""
    selectors: tuple[dict[str, str], ...] = ({},)
    bundle_selectors: tuple[dict[str, str], ...] = ()
    strategy: str = "PACK"
    max_per_node: int | None = None


@dataclass(frozen=True)
class Place:
    """Where a replica goes: a hold for each bundle, never none."""

    holds: tuple[Hold, ...]

    @property
    def node_id(self) -> NodeID:
        """Of the replica itself."""
        return self.holds[0].node_id

    @property
    def gpus(self) -> tuple[int, ...]:
        """Of the replica's own bundle."""
        return self.holds[0].gpus


@dataclass(frozen=True)
class Placement:
    """Every demand is in exactly one of the two.

    Attributes:
        unplaced: why not, with numbers.
    """

    assigned: dict[ReplicaID, Place] = field(default_factory=dict)
    unplaced: dict[ReplicaID, str] = field(default_factory=dict)


#: Nodes by id, as far as they are filled by now.
_Nodes = dict[NodeID, Capacity]


def assign(demands: Sequence[Demand], nodes: Iterable[Capacity]) -> Placement:
    """Give each demand a place, in order; the emptiest fitting node first.

    Pure. Invariants: no amount is given twice; each demand is placed or explained; the order
    of `nodes` does not matter.
    """
    placed = Placement()
    filled = _by_id(nodes)
    for demand in demands:
        filled = _assign_one(demand, filled, placed)
    return placed


def assign_gang(demands: Sequence[Demand], nodes: Iterable[Capacity], strategy: str) -> Placement:
    """Give all of these demands a place, or none of them.

    Pure. Invariants: as `assign`, and all are placed or all are not.

    Args:
        demands: of one gang.
        nodes: as they are filled by now.
        strategy: `PACK` puts them on as few nodes as possible, `SPREAD` on as many.
    """
    placed = Placement()
    filled = _by_id(nodes)
    for number, demand in enumerate(demands):
        own = [place.node_id for place in placed.assigned.values()]
        filled = _assign_one(demand, filled, placed, own, strategy)
        if placed.unplaced:
            why = (
                f"a gang of {len(demands)} starts together or not at all, and {number} of them "
                f"find room; for the next, {next(iter(placed.unplaced.values()))}"
            )
            return Placement({}, {each.replica_id: why for each in demands})
    return placed


def never_fits(gangs: Iterable[Sequence[Demand]], nodes: Iterable[Capacity]) -> tuple[str, str]:
    """Say whose demand could not be held even if nothing else were there, and why.

    Pure. Two empty texts: all of them can be held together.

    Args:
        gangs: demands that come together; a gang of one for a replica on its own.
        nodes: all that there will ever be.

    Returns:
        The deployment of the first gang that finds no room, and the reason.
    """
    filled = [
        # What it refuses now it may take later.
        replace(node, used={}, used_gpus={}, num_replicas=0, holders={}, replicas_of={}, refusal="")
        for node in nodes
    ]
    for gang in gangs:
        placed = assign_gang(gang, filled, "PACK") if len(gang) > 1 else assign(gang, filled)
        for why in placed.unplaced.values():
            return gang[0].deployment, why
        for demand in gang:
            place = placed.assigned[demand.replica_id]
            filled = [take(node, place.holds, demand.deployment) for node in filled]
    return "", ""


def take(node: Capacity, holds: Sequence[Hold], deployment: str = "") -> Capacity:
    """Count what one replica holds on `node`; the replica itself if it is there. Pure."""
    if all(each.node_id != node.node_id for each in holds):
        return node
    if holds[0].node_id == node.node_id:
        replicas_of = dict(node.replicas_of)
        replicas_of[deployment] = replicas_of.get(deployment, 0) + 1
        node = replace(node, num_replicas=node.num_replicas + 1, replicas_of=replicas_of)
    return hold(node, [(deployment, holds)])


def hold(node: Capacity, replicas: Iterable[tuple[str, Sequence[Hold]]]) -> Capacity:
    """Count what replicas hold on `node`, each with the name of its deployment. Pure."""
    used, used_gpus, holders = dict(node.used), dict(node.used_gpus), dict(node.holders)
    own: set[str] = set()
    for deployment, holds in replicas:
        for each in holds:
            if each.node_id != node.node_id or not each.resources:
                continue
            if deployment not in own:
                own.add(deployment)
                holders[deployment] = dict(holders.get(deployment, {}))
            _add_to(used, each.resources)
            _add_to(holders[deployment], each.resources)
            share = min(each.resources.get("GPU", 0.0), 1.0)
            _add_to(used_gpus, dict.fromkeys(each.gpus, share))
    return replace(node, used=used, used_gpus=used_gpus, holders=holders)


_K = TypeVar("_K")


def _add_to(amounts: dict[_K, float], more: Mapping[_K, float]) -> None:
    for name, amount in more.items():
        amounts[name] = amounts.get(name, 0.0) + amount


def _by_id(nodes: Iterable[Capacity]) -> _Nodes:
    return {node.node_id: node for node in sorted(nodes, key=lambda node: node.node_id)}


def _assign_one(
    demand: Demand,
    nodes: _Nodes,
    placed: Placement,
    gang_nodes: Sequence[NodeID] = (),
    gang_strategy: str = "",
) -> _Nodes:
    """Write the answer for one demand into `placed`; return the nodes after it."""
    for selector in demand.selectors:
        holds = _find_holds(demand, selector, nodes, gang_nodes, gang_strategy)
        if holds is not None:
            placed.assigned[demand.replica_id] = Place(holds)
            return {key: take(node, holds, demand.deployment) for key, node in nodes.items()}
    placed.unplaced[demand.replica_id] = shortage.explain(
        demand.bundles,
        list(nodes.values()),
        deployment=demand.deployment,
        selector=demand.selectors[0],
        num_fallbacks=len(demand.selectors) - 1,
        strategy=demand.strategy,
        max_per_node=demand.max_per_node,
    )
    return nodes


def _find_holds(
    demand: Demand,
    selector: dict[str, str],
    nodes: _Nodes,
    gang_nodes: Sequence[NodeID],
    gang_strategy: str,
) -> tuple[Hold, ...] | None:
    """Find a place for every bundle; None: not all fit."""

    def rank(node: Capacity) -> tuple[int, int, NodeID]:
        near = gang_nodes.count(node.node_id)
        wish = {"PACK": -near, "SPREAD": near}.get(gang_strategy, 0)
        return wish, node.num_replicas, node.node_id

    first_nodes = [
        node
        for node in sorted(nodes.values(), key=rank)
        if matches(node.labels, selector) and _may_take(demand, node)
    ]
    single = demand.strategy in ("PACK", "STRICT_PACK")
    if single or len(demand.bundles) == 1:
        for node in first_nodes:
            if holds := _fill(demand, selector, {node.node_id: node}, node.node_id, "PACK"):
                return holds
    if demand.strategy == "STRICT_PACK" or len(demand.bundles) == 1:
        return None
    for node in first_nodes:
        if holds := _fill(demand, selector, nodes, node.node_id, demand.strategy):
            return holds
    return None


def _may_take(demand: Demand, node: Capacity) -> bool:
    limit = demand.max_per_node
    return limit is None or node.replicas_of.get(demand.deployment, 0) < limit


def _fill(
    demand: Demand, selector: dict[str, str], nodes: _Nodes, first: NodeID, strategy: str
) -> tuple[Hold, ...] | None:
    """Put the first bundle on the node `first` and the others near to it or far from it."""
    holds: list[Hold] = []
    for number, bundle in enumerate(demand.bundles):
        own = [hold.node_id for hold in holds]
        found = None
        for node in _others_in_order(nodes, own, strategy) if holds else [nodes[first]]:
            wanted = {**selector, **_selector_of(demand, number)}
            if matches(node.labels, wanted) and (gpus := _fit(bundle, node)) is not None:
                found = Hold(node.node_id, bundle, gpus)
                break
        if found is None:
            return None
        holds.append(found)
        # Counted as an anonymous hold: only amounts and GPUs matter here.
        nodes = {**nodes, found.node_id: take(nodes[found.node_id], [found])}
    return tuple(holds)


def _selector_of(demand: Demand, number: int) -> dict[str, str]:
    selectors = demand.bundle_selectors
    if not selectors:
        return {}
    return selectors[number] if len(selectors) > 1 else selectors[0]


def _others_in_order(nodes: _Nodes, own: Sequence[NodeID], strategy: str) -> list[Capacity]:
    """Order the nodes for a further bundle of a group that is on `own`."""
    if strategy == "STRICT_SPREAD":
        return [node for key, node in nodes.items() if key not in own]
    sign = -1 if strategy == "PACK" else 1
    return sorted(nodes.values(), key=lambda node: (sign * own.count(node.node_id), node.node_id))


def _fit(resources: dict[str, float], node: Capacity) -> tuple[int, ...] | None:
    """Say which GPUs a bundle would get here; None: it does not fit."""
    if not node.takes_new:
        return None
    for name, amount in resources.items():
        if amount > node.free(name) + TOLERANCE:
            return None
    return _pick_gpus(resources.get("GPU", 0.0), node)


def _pick_gpus(amount: float, node: Capacity) -> tuple[int, ...] | None:
    """Whole GPUs that nobody uses, or the fullest one where a share still fits."""
    indices = range(int(node.total.get("GPU", 0.0)))
    if amount <= 0:
        return ()
    if amount >= 1:
        unused = [index for index in indices if node.used_gpus.get(index, 0.0) <= TOLERANCE]
        count = int(amount)
        return tuple(unused[:count]) if amount == count and len(unused) >= count else None
    shares = [
        (-node.used_gpus.get(index, 0.0), index)
        for index in indices
        if node.used_gpus.get(index, 0.0) + amount <= 1.0 + TOLERANCE
    ]
    return (min(shares)[1],) if shares else None
