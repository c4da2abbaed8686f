"""What a process takes, in the words of Ray: options of its actor."""

from __future__ import annotations

from typing import Any

from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from remora.engine.base import ProcessSpec
from remora.errors import EngineError


def actor_options(spec: ProcessSpec) -> dict[str, Any]:
    """Turn what is held for a process into options of its actor.

    Several bundles become a placement group of Ray, in which tasks and actors of the process find
    their place.

    Raises:
        EngineError: it needs folders of its own, which this engine does not carry yet.
    """
    runtime_env = spec.runtime_env
    if runtime_env.working_dir or runtime_env.py_modules:
        raise EngineError(
            "runtime_env with working_dir or py_modules does not work on the engine 'ray' yet: put "
            "the code on every node, or give it to the Ray job (`ray job submit --working-dir`)."
        )
    options: dict[str, Any] = amounts(dict(spec.holds[0].resources)) if spec.holds else {}
    if runtime_env.packages:
        options["runtime_env"] = {runtime_env.installer: list(runtime_env.packages)}
    if len(spec.holds) > 1:
        group = placement_group(
            [dict(hold.resources) for hold in spec.holds],
            strategy=spec.strategy,
            name=spec.process_id,
            lifetime="detached",
        )
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
    return options


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


def give_back(process_id: str) -> None:
    """Remove the placement group of a process that is gone."""
    remove_placement_group(get_placement_group(process_id))
