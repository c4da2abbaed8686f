"""The actors of replicas: how they are made, and what they wait for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remora.engine.base import VISIBLE_GPUS, ProcessSpec
from remora.engine.ray import fleet
from remora.engine.ray.actor_options import actor_options
from remora.engine.ray.groups import has_group, make_group, none_of
from remora.engine.ray.process import ProcessRequest


def create_replica(
    spec: ProcessSpec, namespace: str, node_id: str, unfit: Sequence[str] = ()
) -> Any:
    """Make the actor of a replica, and before it its group; returns its handle. Blocks.

    A group stays when there comes no actor: `remove_group` takes it away.

    Args:
        spec: what was asked for.
        namespace: of the instance.
        node_id: where, unless the place is taken and nobody minds another one.
        unfit: nodes that are no other place.

    Raises:
        EngineError: it asks for what this engine cannot do.
        ValueError: Ray does not take it.
        RayError: Ray's head does not.
    """
    request = ProcessRequest(
        process_id=spec.process_id,
        kind="replica",
        entrypoint=spec.entrypoint,
        title=spec.title,
        namespace=namespace,
        args=dict(spec.args),
        env=environment_of(spec),
    )
    options = actor_options(spec)
    if has_group(spec):
        options["scheduling_strategy"] = make_group(spec, namespace, unfit)
    if spec.pinned:
        # Also if it is gone: then Ray says so, and another place is found.
        return fleet.create(request, node_id=spec.node_id, soft=False, options=options)
    if unfit and not has_group(spec):
        options["label_selector"] = none_of(unfit)
    return fleet.create(request, node_id=node_id, soft=True, options=options)


def environment_of(spec: ProcessSpec) -> dict[str, str]:
    """The variables of a replica: who states that it has no GPUs (0) sees none. Pure.

    Ray shows those that it gives, and all of the node to a worker that asks for none.
    """
    asked = [hold.resources["GPU"] for hold in spec.holds if "GPU" in hold.resources]
    hides = bool(asked) and not any(asked)
    return {**({VISIBLE_GPUS: ""} if hides else {}), **spec.env}


def waits_for(spec: ProcessSpec) -> str:
    """Say what a replica waits for that Ray has not started. Pure."""
    amounts = (each for hold in spec.holds for each in hold.resources.items())
    wanted = ", ".join(f"{name}={amount:g}" for name, amount in amounts)
    found = f"find {wanted} free and " if wanted else ""
    return f"waits for Ray to {found}start a worker; `ray status` shows what is free"
