"""When to check a replica's health, and what to make of the answers.

Rules: pure. Health is a verdict that leads to a change of state, not a state.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from remora.core.events import Event, HealthChecked
from remora.core.state import Activity, ControllerState
from remora.types import ReplicaID, Seconds

#: Failures in a row that make a replica unhealthy (UH-03).
MAX_FAILURES = 3
#: How long after its time limit an answer may still come in before it counts as lost.
LOST_ANSWER_S = 5.0
#: Replicas that become ready together, or that a restarted controller finds, are checked in so
#: many groups: thousands in one tick would hold everything else up, one a tick would be many ticks.
SLOTS = 64


class Verdict(StrEnum):
    """What to do with a replica."""

    #: Leave it.
    FINE = "fine"
    #: It answers, and says that it is not well: it may finish what it does.
    UNHEALTHY = "unhealthy"
    #: It does not answer at all.
    HUNG = "hung"


@dataclass(frozen=True)
class Judgement:
    """A verdict and its reason."""

    verdict: Verdict
    reason: str = ""


def first_checked_s(replica_id: ReplicaID, period_s: Seconds, now: Seconds) -> Seconds:
    """When a replica that is ready counts as checked, so that not all are due at the same time.

    Pure. Invariants: between `now` and half a period later; always the same for one replica.
    """
    slot = zlib.crc32(replica_id.encode()) % SLOTS
    return now + 0.5 * period_s * slot / SLOTS


def due_at(activity: Activity, period_s: Seconds) -> Seconds:
    """When the next check should begin. Pure."""
    return activity.health_checked_s + period_s


def record(activity: Activity, now: Seconds, *, error: str, timed_out: bool) -> Activity:
    """Note the end of a health check. Pure."""
    failed = bool(error) or timed_out
    return msgspec.structs.replace(
        activity,
        health_checked_s=now,
        health_failures=activity.health_failures + 1 if failed else 0,
        health_error=(error or "no answer in time") if failed else "",
        only_timeouts=(timed_out and activity.only_timeouts) if failed else True,
    )


def changes_nothing(state: ControllerState, event: Event) -> bool:
    """Say whether an event is a health check that found well what was well before it. Pure."""
    if not isinstance(event, HealthChecked) or event.error or event.timed_out:
        return False
    activity = state.activity.get(event.replica_id)
    return activity is None or activity.health_failures == 0


def judge(activity: Activity) -> Judgement:
    """Say what the checks so far mean.

    Pure. Invariants: FINE below `MAX_FAILURES` failures in a row.
    """
    if activity.health_failures < MAX_FAILURES:
        return Judgement(Verdict.FINE)
    reason = f"{activity.health_failures} health checks in a row failed: {activity.health_error}"
    return Judgement(Verdict.HUNG if activity.only_timeouts else Verdict.UNHEALTHY, reason)
