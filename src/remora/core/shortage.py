"""What nodes have and what is taken of it, and how to tell people what is missing.

Rules: pure. Every text has the numbers: what was asked for, what is free, who holds the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from remora.core import labels
from remora.types import NodeID

#: Amounts are sums of what users wrote (0.1 + 0.2): equal up to this.
TOLERANCE = 1e-9
#: Holders that are named; the others are counted.
_NAMED = 5
#: Of the id of a node, as people see it.
_ID_CHARS = 12
_GIB = 1024.0**3


@dataclass(frozen=True)
class Capacity:
    """What a node has, and what is taken.

    Attributes:
        total: amounts by name.
        used: amounts by name, of everything placed there.
        used_gpus: share taken of each GPU that is in use, by its index.
        draining: True: nothing new goes here.
        refusal: why nothing new goes here; empty: it does.
        num_replicas: how many are placed here.
        labels: what label selectors look at.
        holders: amounts by name, by the deployment that holds them.
        replicas_of: how many of `num_replicas` each deployment has.
    """

    node_id: NodeID
    total: dict[str, float]
    used: dict[str, float] = field(default_factory=dict)
    used_gpus: dict[int, float] = field(default_factory=dict)
    draining: bool = False
    refusal: str = ""
    num_replicas: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    holders: dict[str, dict[str, float]] = field(default_factory=dict)
    replicas_of: dict[str, int] = field(default_factory=dict)

    @property
    def takes_new(self) -> bool:
        """Whether new replicas may go here at all."""
        return not self.draining and not self.refusal

    def free(self, name: str) -> float:
        """How much of a resource nobody holds."""
        return self.total.get(name, 0.0) - self.used.get(name, 0.0)


def explain(
    bundles: Sequence[dict[str, float]],
    nodes: Sequence[Capacity],
    *,
    deployment: str = "",
    selector: dict[str, str] | None = None,
    num_fallbacks: int = 0,
    strategy: str = "PACK",
    max_per_node: int | None = None,
) -> str:
    """Say with numbers what is missing for a replica that found no place. Pure.

    Nodes that take nothing new are named, with the reason: what is missing may be there.
    """
    missing = _missing(
        bundles,
        nodes,
        deployment=deployment,
        selector=selector,
        num_fallbacks=num_fallbacks,
        strategy=strategy,
        max_per_node=max_per_node,
    )
    refusals = {node.node_id: node.refusal for node in nodes if node.refusal}
    return "; ".join(filter(None, (missing, refusals_told(refusals))))


def refusals_told(refusals: Mapping[NodeID, str]) -> str:
    """Say which nodes take no processes, and why; empty: each takes some. Pure.

    Args:
        refusals: reasons by nodes.
    """
    if not refusals:
        return ""
    named = [
        f"{node_id[:_ID_CHARS]}: {reason}" for node_id, reason in sorted(refusals.items())[:_NAMED]
    ]
    if len(refusals) > _NAMED:
        named.append(f"and {len(refusals) - _NAMED} others")
    many = f"{len(refusals)} more nodes take" if len(refusals) > 1 else "1 more node takes"
    return f"{many} no processes: {'; '.join(named)}"


def _missing(
    bundles: Sequence[dict[str, float]],
    nodes: Sequence[Capacity],
    *,
    deployment: str,
    selector: dict[str, str] | None,
    num_fallbacks: int,
    strategy: str,
    max_per_node: int | None,
) -> str:
    candidates = [node for node in nodes if node.takes_new]
    if not candidates:
        return f"the engine offers no node that takes new replicas ({len(nodes)} known)"
    fitting = [node for node in candidates if labels.matches(node.labels, selector or {})]
    if not fitting:
        return _no_label(candidates, selector or {}, num_fallbacks)
    if max_per_node is not None and all(
        node.replicas_of.get(deployment, 0) >= max_per_node for node in fitting
    ):
        return (
            f"max_replicas_per_node={max_per_node} is reached on {_where(fitting)} "
            f"({sum(node.replicas_of.get(deployment, 0) for node in fitting)} replicas)"
        )
    if strategy == "STRICT_SPREAD" and len(bundles) > len(fitting):
        return (
            f"STRICT_SPREAD needs a node for each of {len(bundles)} bundles, and there are "
            f"{len(fitting)}"
        )
    return _short(_sum(bundles), fitting, is_group=len(bundles) > 1)


def _no_label(nodes: Sequence[Capacity], selector: dict[str, str], num_fallbacks: int) -> str:
    known = sorted({f"{name}={value}" for node in nodes for name, value in node.labels.items()})
    tried = f" (nor for {num_fallbacks} fallback(s))" if num_fallbacks else ""
    return (
        f"no node has the labels for {labels.told(selector)}{tried}; there are "
        f"{', '.join(known) or 'no labels at all'}"
    )


def _sum(bundles: Sequence[dict[str, float]]) -> dict[str, float]:
    wanted: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            wanted[name] = wanted.get(name, 0.0) + amount
    return wanted


def _short(wanted: dict[str, float], nodes: Sequence[Capacity], *, is_group: bool) -> str:
    gpus = wanted.get("GPU", 0.0)
    if gpus > 1 and gpus != int(gpus) and not is_group:
        return f"GPU={gpus:g} is neither a share of one GPU nor a whole number of them"
    missing = []
    for name, amount in sorted(wanted.items()):
        free = max(node.free(name) for node in nodes)
        total = max(node.total.get(name, 0.0) for node in nodes)
        if amount > free + TOLERANCE:
            most = f"{told(name, max(0.0, free))} free of {told(name, total)}"
            held = _held(name, nodes)
            if total <= 0:
                held = f" ({_offered(nodes)})"
            missing.append(f"{name}: {told(name, amount)} needed, {most}{held}")
    if missing:
        return f"not enough on {_where(nodes)}: {'; '.join(missing)}"
    if gpus and any(node.free("GPU") + TOLERANCE >= gpus for node in nodes):
        return _in_parts(gpus, nodes)
    needs = ", ".join(f"{name}={told(name, amount)}" for name, amount in sorted(wanted.items()))
    return f"no node has all of {needs} free together ({len(nodes)} nodes looked at)"


def _offered(nodes: Sequence[Capacity]) -> str:
    """Say what there is at all, where something asked for is nowhere."""
    there = {name for node in nodes for name, amount in node.total.items() if amount > 0}
    return f"nodes have {', '.join(sorted(there)) or 'nothing'}"


def _in_parts(gpus: float, nodes: Sequence[Capacity]) -> str:
    parts = [
        f"GPU {index} of {node.node_id}: {max(0.0, 1.0 - node.used_gpus.get(index, 0.0)):g}"
        for node in nodes
        for index in range(int(node.total.get("GPU", 0.0)))
    ]
    return f"GPU={gpus:g} is free only in parts ({'; '.join(parts)}){_held('GPU', nodes)}"


def _held(name: str, nodes: Sequence[Capacity]) -> str:
    """Say who holds a resource, the greatest first; empty: nobody does."""
    held: dict[str, float] = {}
    for node in nodes:
        for holder, amounts in node.holders.items():
            if amounts.get(name, 0.0) > TOLERANCE:
                held[holder] = held.get(holder, 0.0) + amounts[name]
    if not held:
        return ""
    ordered = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{holder or 'others'} {told(name, amount)}" for holder, amount in ordered[:_NAMED]]
    if len(ordered) > _NAMED:
        named.append(f"{len(ordered) - _NAMED} more")
    return f" (held by {', '.join(named)})"


def _where(nodes: Sequence[Capacity]) -> str:
    return "the one node" if len(nodes) == 1 else f"any of {len(nodes)} nodes"


def told(name: str, amount: float) -> str:
    """Write an amount for people: memory in GiB, everything else as the number. Pure."""
    return f"{amount / _GIB:.3g} GiB" if name == "memory" else f"{amount:g}"
