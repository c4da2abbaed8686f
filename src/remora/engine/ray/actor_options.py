"""What a process takes, in the words of Ray: options of its actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from remora.engine.base import ProcessSpec
from remora.engine.ray.cluster import NAMESPACE
from remora.errors import EngineError
from remora.resource_config import RuntimeEnv

#: The label in which Ray itself says which node it is.
_NODE_LABEL = "ray.io/node-id"
#: Groups without a process, for what waits for room; no process has such an id.
WAITING = "(waits for room)"


def actor_options(spec: ProcessSpec, namespace: str = NAMESPACE) -> dict[str, Any]:
    """Turn what is held for a process into options of its actor.

    Several bundles become a placement group of Ray, in which tasks and actors of the process find
    their place.

    Raises:
        EngineError: it needs folders or files of this node, which this engine does not carry yet.
    """
    options: dict[str, Any] = amounts(dict(spec.holds[0].resources)) if spec.holds else {}
    if runtime_env := environment(spec.runtime_env):
        options["runtime_env"] = runtime_env
    if len(spec.holds) > 1:
        group = placement_group(
            [dict(hold.resources) for hold in spec.holds],
            strategy=spec.strategy,
            name=group_name(namespace, spec.process_id),
            lifetime="detached",
            bundle_label_selector=[{_NODE_LABEL: hold.node_id} for hold in spec.holds]
            if spec.pinned
            else None,
        )
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
    return options


def environment(env: RuntimeEnv) -> dict[str, Any]:
    """Turn what a process finds of its own into a `runtime_env` of Ray. Pure.

    Raises:
        EngineError: it needs folders or files of this node, which this engine does not carry yet.
    """
    if env.working_dir or env.py_modules:
        raise EngineError(
            "runtime_env with working_dir or py_modules does not work on the engine 'ray' yet: put "
            "the code on every node, or give it to the Ray job (`ray job submit --working-dir`)."
        )
    for package in env.packages:
        if "file:" in package:
            raise EngineError(
                f"runtime_env[{env.installer!r}] names {package.partition('#')[0]}, a file of the "
                "node where it was deployed, which the engine 'ray' does not carry to others yet: "
                "install it on every node, or name an index or a URL that has it."
            )
    if not env.packages:
        return {}
    wanted: dict[str, Any] = {"packages": list(env.packages)}
    # Without options Ray has some of its own, which an empty list would take away.
    if env.install_options:
        name = "pip_install_options" if env.installer == "pip" else "uv_pip_install_options"
        wanted[name] = list(env.install_options)
    return {env.installer: wanted}


def amounts(resources: dict[str, float]) -> dict[str, Any]:
    """Turn amounts by name into options of an actor. Pure."""
    options: dict[str, Any] = {
        "num_cpus": resources.pop("CPU", 0.0),
        "num_gpus": resources.pop("GPU", 0.0),
    }
    if memory := resources.pop("memory", 0.0):
        options["memory"] = int(memory)
    if resources:
        options["resources"] = resources
    return options


def remove_group(namespace: str, process_id: str) -> None:
    """Remove the placement group of a process that is gone; none is no error."""
    _remove(lambda name: name == group_name(namespace, process_id))


def remove_waiting(namespace: str) -> None:
    """Remove the groups that an earlier controller left for what waited for room."""
    _remove(lambda name: name.startswith(group_name(namespace, WAITING)))


def remove_groups(namespace: str) -> None:
    """Remove the placement groups of all processes: they outlive them."""
    _remove(lambda name: name.startswith(group_name(namespace, "")))


def group_name(namespace: str, process_id: str) -> str:
    """Name of the placement group of a process. Pure."""
    return f"{namespace}:{process_id}"


def _remove(is_meant: Callable[[str], bool]) -> None:
    for group in placement_group_table().values():
        if is_meant(group["name"]) and group["state"] != "REMOVED":
            group_id = PlacementGroupID(bytes.fromhex(group["placement_group_id"]))
            remove_placement_group(PlacementGroup(group_id))
