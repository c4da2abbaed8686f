"""How many replicas to start and which ones to let go, one step at a time.

A new replica runs before an old one leaves: the number of running replicas never falls below
the target by a decision of this module. Nor does it below what the version before is wanted in, until
the new one runs in full: should it fail, nothing was lost.

What starts and leaves as one, a gang, is one `Member`; numbers are of replicas all the same, since the
gangs of two versions may differ in size.

Rules: pure; knows neither time nor places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remora.config import DeploymentConfig
from remora.core.replica_state import ReplicaState
from remora.types import ReplicaID


@dataclass(frozen=True)
class Member:
    """A replica or gang as a roll-out sees it, in PENDING, STARTING, RUNNING or DRAINING."""

    replica_id: ReplicaID
    state: ReplicaState
    #: Of the version that is wanted, and fit to stay.
    current: bool
    rank: int = 0
    #: How many replicas it is, >= 1.
    size: int = 1


@dataclass(frozen=True)
class Bounds:
    """How big a step may be.

    Attributes:
        surge: extra replicas beside the target while old ones run, >= 1.
        batch: old replicas that leave at a time, >= 1.
        size: replicas that start as one, >= 1.
    """

    surge: int
    batch: int
    size: int = 1


@dataclass(frozen=True)
class Plan:
    """One step.

    Attributes:
        start: how many gangs to start, or replicas where they are alone.
        cancel: not ready yet and not wanted any more.
        drain: running, and may go now.
    """

    start: int = 0
    cancel: tuple[ReplicaID, ...] = ()
    drain: tuple[ReplicaID, ...] = ()
    reason: str = ""


def bounds(config: DeploymentConfig, target: int) -> Bounds:
    """Work out how big a step towards `target` replicas may be.

    Pure. Invariants: whole gangs, and at least one. `max_surge_percent` sets the surge where it is
    given; otherwise as many as leave at a time may come before them.
    """
    size = config.gang_size
    groups = target // size
    batch = max(1, int(config.rolling_update_percentage * groups))
    surge = batch
    if config.max_surge_percent > 0:
        surge = max(1, math.ceil(config.max_surge_percent * groups / 100))
    return Bounds(surge * size, batch * size, size)


def most_beside(limits: Bounds, old: Iterable[int], kept: int) -> int:
    """Say how many replicas there can be at most beside `kept`, while old ones of these sizes run.

    Pure. More than the surge where that is too little for any old gang to be replaced.
    """
    sizes = list(old)
    if not sizes:
        return limits.surge
    return max(limits.surge, max(sizes) + limits.size - math.gcd(limits.size, kept, *sizes))


def plan(members: Sequence[Member], target: int, limits: Bounds, before: int = 0) -> Plan:
    """Decide the next step towards `target` running current replicas.

    Pure. Invariants: PENDING, STARTING and RUNNING together never grow above `most_beside` the
    greater one of `target` and `before`; draining never takes the running ones below `target`, nor
    below `before` while fewer than `target` current ones run; no old replica is ever started; the
    order of `members` does not matter; where all that starts comes up, the target is reached.

    Args:
        members: all that there are.
        target: how many current replicas should run: whole gangs of `limits.size`.
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
    num_running, num_old = _replicas(running), _replicas(old_running)
    num_current_running = num_running - num_old
    current_coming = [member for member in coming if member.current]

    surplus = num_current_running + _replicas(current_coming) - target
    # PENDING before STARTING: the one that is further on is worth more.
    current_coming.sort(key=lambda member: member.state is ReplicaState.STARTING)
    dropped = _fitting(current_coming, surplus)
    cancel = [*(member for member in coming if not member.current), *dropped]
    num_coming = _replicas(current_coming) - _replicas(dropped)

    leaving = _replicas(
        member for member in ordered if member.state is ReplicaState.DRAINING and not member.current
    )
    replaces = bool(target and old_running)
    kept = max(target, before) if replaces and num_current_running < target else target
    # A target of zero replaces nothing, so no step needs a bound.
    batch = limits.batch if target else num_old + leaving
    if old_running:
        drain = _leaving_next(old_running, num_running - kept, batch, leaving)
    else:
        drain = _fitting(running, num_running - kept)
    missing = (target - num_current_running - num_coming) // limits.size
    room = _room(old_running, kept - num_running - num_coming, limits)
    return Plan(
        start=max(0, min(missing, room)),
        cancel=tuple(member.replica_id for member in cancel),
        drain=tuple(member.replica_id for member in drain),
        reason=(
            f"{num_current_running} of {target} run, {num_coming} come, {num_old} old run, "
            f"{leaving} old leave"
        ),
    )


def _replicas(members: Iterable[Member]) -> int:
    return sum(member.size for member in members)


def _fitting(members: Iterable[Member], spare: int) -> list[Member]:
    """Pick the first ones that are no more than `spare` replicas together."""
    picked = []
    for member in members:
        if member.size <= spare:
            picked.append(member)
            spare -= member.size
    return picked


def _leaving_next(
    old_running: Sequence[Member], spare: int, batch: int, leaving: int
) -> list[Member]:
    """Pick which old ones may leave now, while `leaving` old replicas do so already."""
    picked = []
    for member in old_running:
        # A gang that is bigger than a step leaves alone.
        if member.size <= spare and (not leaving or leaving + member.size <= batch):
            picked.append(member)
            spare -= member.size
            leaving += member.size
    return picked


def _room(old_running: Sequence[Member], below: int, limits: Bounds) -> int:
    """Say for how many gangs there is room, where `below` replicas are missing to what is kept."""
    if not old_running:
        return below // limits.size
    # So many that an old gang can leave then, also where it is bigger than the surge.
    smallest = min(member.size for member in old_running)
    enough = -(-(below + smallest) // limits.size)
    return max((below + limits.surge) // limits.size, enough)
