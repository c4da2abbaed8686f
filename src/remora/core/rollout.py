"""How many replicas to start and which ones to let go, one step at a time.

A new replica runs before an old one leaves: the number of running replicas never falls below
the target by a decision of this module. Nor does it below what the version before is wanted in, until
the new one runs in full: should it fail, nothing was lost.

Rules: pure; knows neither time nor places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from remora.config import DeploymentConfig
from remora.core.replica_state import ReplicaState
from remora.types import ReplicaID


@dataclass(frozen=True)
class Member:
    """A replica as a roll-out sees it, in PENDING, STARTING, RUNNING or DRAINING."""

    replica_id: ReplicaID
    state: ReplicaState
    #: Of the version that is wanted, and fit to stay.
    current: bool
    rank: int = 0


@dataclass(frozen=True)
class Bounds:
    """How big a step may be.

    Attributes:
        surge: extra replicas beside the target while old ones run, >= 1.
        batch: old replicas that leave at a time, >= 1.
    """

    surge: int
    batch: int


@dataclass(frozen=True)
class Plan:
    """One step.

    Attributes:
        start: how many to start.
        cancel: not ready yet and not wanted any more.
        drain: running, and may go now.
    """

    start: int = 0
    cancel: tuple[ReplicaID, ...] = ()
    drain: tuple[ReplicaID, ...] = ()
    reason: str = ""


def bounds(config: DeploymentConfig, target: int) -> Bounds:
    """Work out how big a step may be.

    Pure. Invariants: at least one of both. `max_surge_percent` sets the surge where it is
    given; otherwise as many as leave at a time may come before them.
    """
    batch = max(1, int(config.rolling_update_percentage * target))
    if config.max_surge_percent > 0:
        return Bounds(max(1, math.ceil(config.max_surge_percent * target / 100)), batch)
    return Bounds(batch, batch)


def plan(members: list[Member], target: int, limits: Bounds, before: int = 0) -> Plan:
    """Decide the next step towards `target` running current replicas.

    Pure. Invariants: PENDING, STARTING and RUNNING together never grow above the surge and the
    greater one of `target` and `before`; draining never takes the running ones below `target`, nor
    below `before` while fewer than `target` current ones run; no old replica is ever started; the
    order of `members` does not matter.

    Args:
        members: all that there are.
        target: how many current ones should run.
        limits: how big the step may be.
        before: how many replicas the version before should have; 0: there is nothing to go back to.
    """
    ordered = sorted(members, key=lambda member: (-member.rank, member.replica_id))
    running = [member for member in ordered if member.state is ReplicaState.RUNNING]
    coming = [
        member
        for member in ordered
        if member.state in (ReplicaState.PENDING, ReplicaState.STARTING)
    ]
    old_running = [member for member in running if not member.current]
    num_current_running = len(running) - len(old_running)
    current_coming = [member for member in coming if member.current]

    cancel = [member.replica_id for member in coming if not member.current]
    surplus = num_current_running + len(current_coming) - target
    # PENDING before STARTING: the one that is further on is worth more.
    current_coming.sort(key=lambda member: member.state is ReplicaState.STARTING)
    dropped = current_coming[: max(0, surplus)]
    cancel += [member.replica_id for member in dropped]
    num_coming = len(current_coming) - len(dropped)

    leaving = sum(
        member.state is ReplicaState.DRAINING and not member.current for member in ordered
    )
    replaces = bool(target and old_running)
    kept = max(target, before) if replaces and num_current_running < target else target
    # A target of zero replaces nothing, so no step needs a bound.
    may_go = limits.batch - leaving if target else len(old_running)
    drain = _drains(running, old_running, kept, may_go)
    missing = target - num_current_running - num_coming
    room = kept + (limits.surge if old_running else 0) - len(running) - num_coming
    start = max(0, min(missing, room))
    return Plan(
        start=start,
        cancel=tuple(cancel),
        drain=tuple(drain),
        reason=(
            f"{num_current_running} of {target} run, {num_coming} come, {len(old_running)} old run, "
            f"{leaving} old leave"
        ),
    )


def _drains(
    running: list[Member], old_running: list[Member], kept: int, may_go: int
) -> list[ReplicaID]:
    """Pick who may leave: old ones first, then those that are too many."""
    spare = len(running) - kept
    if spare <= 0:
        return []
    if old_running:
        return [member.replica_id for member in old_running[: max(0, min(spare, may_go))]]
    return [member.replica_id for member in running if member.current][:spare]
