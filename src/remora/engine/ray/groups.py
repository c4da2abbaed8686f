"""Placement groups of Ray: the room of a process that holds several bundles.

Rules: a group outlives its process, and whoever made it. Whoever follows the process removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from remora.engine.base import ProcessSpec
from remora.engine.ray.cluster import asked

#: The label in which Ray itself says which node it is.
_NODE_LABEL = "ray.io/node-id"
#: Groups without a process, for what waits for room; no process has such an id.
WAITING = "(waits for room)"


def has_group(spec: ProcessSpec) -> bool:
    """Whether a process has a placement group: it holds several bundles. Pure."""
    return len(spec.holds) > 1


def group_nodes(spec: ProcessSpec) -> frozenset[str]:
    """The nodes that the group of a process must lie on; empty: any will do. Pure."""
    if not has_group(spec) or not spec.pinned:
        return frozenset()
    return frozenset(hold.node_id for hold in spec.holds)


def none_of(unfit: Sequence[str]) -> dict[str, str]:
    """Make a selector of labels that these nodes do not fit; there is at least one. Pure."""
    return {_NODE_LABEL: f"!in({','.join(unfit)})"}


def make_group(
    spec: ProcessSpec, namespace: str, unfit: Sequence[str] = ()
) -> PlacementGroupSchedulingStrategy:
    """Make the placement group of a process; returns the place in it. Blocks.

    Tasks and actors of the process find their place in it. It outlives the process: whoever
    follows that removes it.

    Args:
        spec: of the process.
        namespace: of the instance.
        unfit: nodes where none of it may be, where the nodes are Ray's to choose.
    """
    selectors: list[dict[str, str]] | None = None
    if spec.pinned:
        selectors = [{_NODE_LABEL: str(hold.node_id)} for hold in spec.holds]
    elif unfit:
        selectors = [none_of(unfit)] * len(spec.holds)
    group = placement_group(
        [dict(hold.resources) for hold in spec.holds],
        strategy=spec.strategy,
        name=group_name(namespace, spec.process_id),
        lifetime="detached",
        bundle_label_selector=selectors,
    )
    return PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
    )


def remove_group(namespace: str, process_id: str) -> None:
    """Remove the placement group of a process that is gone; none is no error. Blocks.

    Raises:
        EngineError: Ray's head does not answer.
    """
    _remove(lambda name: name == group_name(namespace, process_id))


def remove_groups(namespace: str, spare: Collection[str] = ()) -> None:
    """Remove the placement groups of processes, which they outlive. Blocks.

    Args:
        namespace: of the instance.
        spare: ids of processes that keep theirs.

    Raises:
        EngineError: Ray's head does not answer.
    """
    spared = {group_name(namespace, process_id) for process_id in spare}
    _remove(lambda name: name.startswith(group_name(namespace, "")) and name not in spared)


def group_name(namespace: str, process_id: str) -> str:
    """Name of the placement group of a process. Pure."""
    return f"{namespace}:{process_id}"


def _remove(is_meant: Callable[[str], bool]) -> None:
    for group in asked("list placement groups", placement_group_table).values():
        if is_meant(group["name"]) and group["state"] != "REMOVED":
            group_id = PlacementGroupID(bytes.fromhex(group["placement_group_id"]))
            asked(
                f"remove the placement group {group['name']}",
                partial(remove_placement_group, PlacementGroup(group_id)),
            )
