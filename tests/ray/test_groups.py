"""Placement groups as Ray keeps them."""

from __future__ import annotations

import pytest
from ray.util.placement_group import placement_group_table

from remora.engine.base import ProcessSpec
from remora.engine.ray.groups import make_group, remove_group, remove_groups
from remora.types import NodeID
from remora.wire.holds import Hold

HOLDS = (Hold(NodeID(""), {"CPU": 0.1}), Hold(NodeID(""), {"CPU": 0.1}))


def states(namespace: str) -> dict[str, bool]:
    """Which groups of a namespace there are, and which of them still hold room."""
    return {
        group["name"].removeprefix(f"{namespace}:"): group["state"] != "REMOVED"
        for group in placement_group_table().values()
        if group["name"].startswith(f"{namespace}:")
    }


@pytest.mark.usefixtures("cluster")
def test_groups_are_removed_by_name_and_one_that_is_gone_is_no_error() -> None:
    for number in (1, 2, 3):
        make_group(ProcessSpec(f"a/d#{number}", "m:f", "t", holds=HOLDS), "groups")
    make_group(ProcessSpec("a/d#1", "m:f", "t", holds=HOLDS), "others")
    for process_id in ("a/d#1", "a/d#1", "a/d#9"):
        remove_group("groups", process_id)
    assert states("groups") == {"a/d#1": False, "a/d#2": True, "a/d#3": True}
    remove_groups("groups", spare=["a/d#3"])
    assert states("groups") == {"a/d#1": False, "a/d#2": False, "a/d#3": True}
    assert states("others") == {"a/d#1": True}
    for namespace in ("groups", "others"):
        remove_groups(namespace)
    assert not any(states("groups").values())
