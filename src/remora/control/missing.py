"""What finds no room on the nodes there are, in the words of the engine, which may get more.

Rules: pure.
"""

from __future__ import annotations

from remora.core.goal import goal_of
from remora.core.starting import demand_of
from remora.core.state import ControllerState
from remora.engine.base import Missing
from remora.types import replica_id


def missing(state: ControllerState) -> tuple[Missing, ...]:
    """List what waits for room, once for each replica or gang. Pure.

    Without deployments that have a limit for each node: what they lack is not an amount.
    """
    found: list[Missing] = []
    for where, pacing in state.pacing.items():
        app = state.applications.get(where.app_name)
        deployment = app.deployments.get(where.name) if app is not None else None
        target = goal_of(deployment).target if deployment is not None else None
        if not pacing.num_unplaced or target is None or target.config.max_replicas_per_node:
            continue
        config = target.config
        demand = demand_of(replica_id(where, ""), where, config)
        own = demand.bundle_selectors or ({},)
        if len(own) == 1:
            own *= len(demand.bundles)
        selectors = tuple({**demand.selectors[0], **each} for each in own)
        # A gang is one group: what would hold a part of it is to stay free.
        gang = config.gang_scheduling_config
        size, strategy = config.gang_size, demand.strategy
        if gang is not None:
            strategy = gang.gang_placement_strategy
        each = Missing(demand.bundles * size, selectors * size, strategy)
        found += [each] * (pacing.num_unplaced // size)
    return tuple(found)
