"""Which node a new replica goes to, and why some find no place.

Rules: pure. Resources are names with amounts; `GPU` is special because a replica must know
which ones it may use: whole GPUs, or a share of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remora.types import NodeID, ReplicaID

#: Amounts are sums of what users wrote (0.1 + 0.2): equal up to this.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Capacity:
    """What a node has, and what is taken.

    Attributes:
        total: amounts by name.
        used: amounts by name, of everything placed there.
        used_gpus: share taken of each GPU that is in use, by its index.
        draining: True: nothing new goes here.
        num_replicas: how many are placed here.
    """

    node_id: NodeID
    total: dict[str, float]
    used: dict[str, float] = field(default_factory=dict)
    used_gpus: dict[int, float] = field(default_factory=dict)
    draining: bool = False
    num_replicas: int = 0


@dataclass(frozen=True)
class Demand:
    """A replica that wants a place."""

    replica_id: ReplicaID
    resources: dict[str, float]


@dataclass(frozen=True)
class Place:
    """Where a replica goes, and which GPUs it gets."""

    node_id: NodeID
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Every demand is in exactly one of the two.

    Attributes:
        unplaced: why not, with numbers.
    """

    assigned: dict[ReplicaID, Place]
    unplaced: dict[ReplicaID, str]


def assign(demands: list[Demand], nodes: list[Capacity]) -> Placement:
    """Give each demand a node, in order; the emptiest fitting node first.

    Pure. Invariants: no amount is given twice; each demand is placed or explained; the order
    of `nodes` does not matter.
    """
    open_nodes = {node.node_id: node for node in sorted(nodes, key=lambda node: node.node_id)}
    assigned: dict[ReplicaID, Place] = {}
    unplaced: dict[ReplicaID, str] = {}
    for demand in demands:
        fitting = [
            (node.num_replicas, node.node_id, gpus)
            for node in open_nodes.values()
            if (gpus := _fit(demand.resources, node)) is not None
        ]
        if not fitting:
            unplaced[demand.replica_id] = _explain(demand, list(open_nodes.values()))
            continue
        _, node_id, gpus = min(fitting)
        assigned[demand.replica_id] = Place(node_id, gpus)
        open_nodes[node_id] = take(open_nodes[node_id], demand.resources, gpus)
    return Placement(assigned, unplaced)


def take(node: Capacity, resources: dict[str, float], gpus: tuple[int, ...]) -> Capacity:
    """Count one more replica on `node`. Pure."""
    used = dict(node.used)
    for name, amount in resources.items():
        used[name] = used.get(name, 0.0) + amount
    used_gpus = dict(node.used_gpus)
    for gpu in gpus:
        used_gpus[gpu] = used_gpus.get(gpu, 0.0) + min(resources.get("GPU", 0.0), 1.0)
    return Capacity(node.node_id, node.total, used, used_gpus, node.draining, node.num_replicas + 1)


def _fit(resources: dict[str, float], node: Capacity) -> tuple[int, ...] | None:
    """Say which GPUs a replica would get here; None: it does not fit."""
    if node.draining:
        return None
    for name, amount in resources.items():
        if amount > node.total.get(name, 0.0) - node.used.get(name, 0.0) + _TOLERANCE:
            return None
    return _pick_gpus(resources.get("GPU", 0.0), node)


def _pick_gpus(amount: float, node: Capacity) -> tuple[int, ...] | None:
    """Whole GPUs that nobody uses, or the fullest one where a share still fits."""
    indices = range(int(node.total.get("GPU", 0.0)))
    if amount <= 0:
        return ()
    if amount >= 1:
        unused = [index for index in indices if node.used_gpus.get(index, 0.0) <= _TOLERANCE]
        count = int(amount)
        return tuple(unused[:count]) if amount == count and len(unused) >= count else None
    shares = [
        (-node.used_gpus.get(index, 0.0), index)
        for index in indices
        if node.used_gpus.get(index, 0.0) + amount <= 1.0 + _TOLERANCE
    ]
    return (min(shares)[1],) if shares else None


def _explain(demand: Demand, nodes: list[Capacity]) -> str:
    """Say with numbers what is missing."""
    candidates = [node for node in nodes if not node.draining]
    if not candidates:
        return f"the engine offers no node that takes new replicas ({len(nodes)} known)"
    gpus = demand.resources.get("GPU", 0.0)
    if gpus > 1 and gpus != int(gpus):
        return f"GPU={gpus:g} is neither a share of one GPU nor a whole number of them"
    short = []
    for name, amount in sorted(demand.resources.items()):
        free = [node.total.get(name, 0.0) - node.used.get(name, 0.0) for node in candidates]
        total = max(node.total.get(name, 0.0) for node in candidates)
        if amount > max(free) + _TOLERANCE:
            most = f"{max(0.0, *free):g} free of {total:g}"
            short.append(f"{name}: {amount:g} needed, {most}")
    where = "on the one node" if len(candidates) == 1 else f"on any of {len(candidates)} nodes"
    if short:
        return f"not enough {where}: {'; '.join(short)}"
    needs = ", ".join(f"{name}={amount:g}" for name, amount in sorted(demand.resources.items()))
    return f"no node has all of {needs} free together ({len(candidates)} nodes looked at)"
