"""When a node has its agent and proxies, and when they leave it: to Ray a node with any actor is busy.

Where Ray's head is, and where the instance was started, they stay. Elsewhere they are there while a
process of the instance is, or a program that uses their socket. Then they close: load balancers are
told to leave, whoever comes all the same is served. What is under way ends, and at the earliest
after a while, so that load balancers have seen it, they leave.

Rules: pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from remora.errors import ConfigError
from remora.types import Seconds

#: How long proxies close at least, as in Ray Serve.
MIN_CLOSING_S: Seconds = 30.0
_CLOSING_VARIABLE = "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S"


def min_closing_s(environment: Mapping[str, str]) -> Seconds:
    """How long proxies close at least where an instance is started. Pure.

    Raises:
        ConfigError: the environment says something else.
    """
    given = environment.get(_CLOSING_VARIABLE, "")
    try:
        wanted = float(given or MIN_CLOSING_S)
    except ValueError:
        wanted = -1.0
    if not 0 <= wanted < float("inf"):
        raise ConfigError(_CLOSING_VARIABLE, given, "must be a number of seconds, at least 0")
    return wanted


class Phase(StrEnum):
    """How far the agent and the proxies of a node are."""

    #: There are none.
    AWAY = "away"
    #: Asked for; from here they are HERE, or, when they cannot start, AWAY.
    COMING = "coming"
    HERE = "here"
    #: Nobody needs them: clients are told to leave.
    CLOSING = "closing"
    #: The agent has been asked to; from here they are AWAY, or, when it refuses, CLOSING.
    LEAVING = "leaving"


class Order(StrEnum):
    """What is to be done."""

    START = "start"
    CLOSE = "close"
    OPEN = "open"
    LEAVE = "leave"


class Busy(msgspec.Struct, frozen=True):
    """What an agent knows of who needs it and its proxies."""

    #: Requests that the proxies have under way; who stays on purpose counts as one.
    num_ongoing: int
    #: Connections to the controller of programs on that node.
    num_callers: int


#: Nobody needs them.
IDLE = Busy(0, 0)


class Staff(msgspec.Struct, frozen=True):
    """The agent and the proxies of one node, as kept for a later controller."""

    phase: Phase
    #: When that began (Unix time); while it is LEAVING, when CLOSING began.
    since_s: Seconds


def decide(
    staff: Staff, now: Seconds, *, is_needed: bool, busy: Busy | None, min_closing_s: Seconds
) -> tuple[Staff, Order | None]:
    """Say what becomes of the agent and proxies of a node.

    Invariants: where they are needed nothing closes and nothing leaves; what is under way is not cut
    off; they leave only after they have been closing for `min_closing_s`, all of it without a need.

    Args:
        staff: as it is.
        now: the time, as in `staff`.
        is_needed: the node has them always, or processes of the instance are there or on their way.
        busy: what the agent said last; None: that is not known.
        min_closing_s: they close for so long at least.
    """
    match staff.phase:
        case Phase.AWAY if is_needed:
            return Staff(Phase.COMING, now), Order.START
        case Phase.HERE if not is_needed and busy is not None and not busy.num_callers:
            return Staff(Phase.CLOSING, now), Order.CLOSE
        case Phase.CLOSING if is_needed or (busy is not None and busy.num_callers):
            return Staff(Phase.HERE, now), Order.OPEN
        case Phase.CLOSING if (
            busy is not None and not busy.num_ongoing and now - staff.since_s >= min_closing_s
        ):
            return msgspec.structs.replace(staff, phase=Phase.LEAVING), Order.LEAVE
    return staff, None


def came(staff: Staff, now: Seconds) -> Staff:
    """Say what they are once the agent is up; also one that somebody else has started."""
    return Staff(Phase.HERE, now) if staff.phase in (Phase.AWAY, Phase.COMING) else staff


def stayed_away(staff: Staff, now: Seconds) -> Staff:
    """Say what they are when they could not start, or have left."""
    return Staff(Phase.AWAY, now) if staff.phase in (Phase.COMING, Phase.LEAVING) else staff


def refused(staff: Staff) -> Staff:
    """Say what they are when the agent would not leave, because somebody has come meanwhile."""
    return (
        msgspec.structs.replace(staff, phase=Phase.CLOSING)
        if staff.phase is Phase.LEAVING
        else staff
    )
