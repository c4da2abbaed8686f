"""The life of one replica: six states, a table of what leads from one to the next, and its story.

Rules: pure. The table below is the only place that knows which state follows which; an
illegal pair is a bug and raises `InvalidTransition` with everything that led there. Back-off
and giving up belong to the deployment (`restart.py`), health is a verdict (`health.py`);
neither is a state.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from remora.errors import InternalError
from remora.types import LOCAL_NODE, NodeID, ReplicaID, Seconds
from remora.wire.holds import Gang, Hold

# `gc=False` below and in what else there are thousands of: plain values, which can form no circle,
# and which the garbage collector would look through for a tenth of a second at a time.

#: Moments kept per replica: a replica that lives normally goes through six.
_KEPT_MOMENTS = 12


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"


#: What each state means, for people; `docs/states.md` is made from it.
MEANING: dict[ReplicaState, str] = {
    ReplicaState.PENDING: "decided and placed; no process yet",
    ReplicaState.STARTING: (
        "its process exists and constructs the user's object, warms up and checks its health; "
        "also a replica found again after a controller restart, until it answers"
    ),
    ReplicaState.RUNNING: "in the routing snapshot",
    ReplicaState.DRAINING: "out of the routing snapshot; finishes ongoing work until its deadline",
    ReplicaState.STOPPING: "asked to end; killed at its deadline",
    ReplicaState.STOPPED: "gone; its id is never used again; kept for a while for its story",
}


class Cause(StrEnum):
    """Why a replica changes its state."""

    PROCESS_STARTED = "process started"
    CANCELLED = "cancelled"
    READY = "ready"
    START_FAILED = "start failed"
    SUPERSEDED = "superseded"
    LEAVE = "told to leave"
    HUNG = "hung"
    CONTROLLER_RESTARTED = "controller restarted"
    IDLE = "idle"
    DRAIN_DEADLINE = "drain deadline"
    GONE = "process gone"


_PENDING, _STARTING, _RUNNING, _DRAINING, _STOPPING, _STOPPED = ReplicaState

TRANSITIONS: dict[tuple[ReplicaState, Cause], ReplicaState] = {
    # The engine reports a process with an address; what it does inside is still unknown.
    (_PENDING, Cause.PROCESS_STARTED): _STARTING,
    # No longer wanted, or the engine said nothing for too long: a late process gets killed.
    (_PENDING, Cause.CANCELLED): _STOPPED,
    # The engine could not start it.
    (_PENDING, Cause.GONE): _STOPPED,
    # Only the replica itself can say that it is ready: constructed, warmed up, healthy.
    (_STARTING, Cause.READY): _RUNNING,
    # The user's constructor raised; the process has nothing to offer and goes.
    (_STARTING, Cause.START_FAILED): _STOPPING,
    # A newer deploy, a scale-down or a deletion came before it was ready: no request to wait for.
    (_STARTING, Cause.SUPERSEDED): _STOPPING,
    # Died while loading.
    (_STARTING, Cause.GONE): _STOPPED,
    # Scale-down, roll-out, deletion, failed health checks or a leaving node: nothing is lost.
    (_RUNNING, Cause.LEAVE): _DRAINING,
    # It answers no health check any more, so it would not answer a request to drain either.
    (_RUNNING, Cause.HUNG): _STOPPING,
    # The new controller knows nothing of it until it answers.
    (_RUNNING, Cause.CONTROLLER_RESTARTED): _STARTING,
    # Crashed: what is safe to repeat is repeated elsewhere, and another replica takes its place.
    (_RUNNING, Cause.GONE): _STOPPED,
    # The last ongoing request has ended.
    (_DRAINING, Cause.IDLE): _STOPPING,
    # Ongoing requests took longer than `graceful_shutdown_timeout_s`.
    (_DRAINING, Cause.DRAIN_DEADLINE): _STOPPING,
    # Crashed while finishing its work.
    (_DRAINING, Cause.GONE): _STOPPED,
    # The normal end.
    (_STOPPING, Cause.GONE): _STOPPED,
}

#: Has, or may get, a process; holds its resources.
LIVE = frozenset({_PENDING, _STARTING, _RUNNING, _DRAINING, _STOPPING})
#: In the routing snapshot.
ROUTABLE = frozenset({_RUNNING})
#: Counts towards the number of replicas that the deployment should have.
STAYING = frozenset({_PENDING, _STARTING, _RUNNING})
#: Nothing follows.
TERMINAL = frozenset({_STOPPED})


class InvalidTransition(InternalError):
    """A replica was told something that cannot happen in its state."""


class Moment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One change of state, kept for the story."""

    #: The event that caused it; 0: the controller's own decision as time passed.
    event_id: int
    at_unix_s: float
    before: ReplicaState
    after: ReplicaState
    cause: Cause
    detail: str = ""


class Replica(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One replica, as far as the controller knows it."""

    replica_id: ReplicaID
    state: ReplicaState = _PENDING
    #: What cannot change without a restart: code, arguments, resources, environment.
    version: str
    #: What it was last configured with; compared with the target's.
    config_key: str = ""
    node_id: NodeID = LOCAL_NODE
    resources: dict[str, float] = {}
    #: Indices of the node's GPUs that it may use.
    gpus: tuple[int, ...] = ()
    #: The other bundles of its placement group; what is above is the first one.
    other_holds: tuple[Hold, ...] = ()
    gang: Gang | None = None
    #: Smallest number free in its deployment when it was decided; see `ranks.py`.
    rank: int = 0
    #: Number of its node among those of the deployment, and its own number on that node.
    node_rank: int = 0
    local_rank: int = 0
    #: It knows these three.
    ranks_told: bool = True
    address: str = ""
    pid: int | None = None
    #: When the present state began.
    since_s: Seconds = 0.0
    started_at_unix_s: float | None = None
    #: It was RUNNING once: its death is a crash, not a failed start.
    was_ready: bool = False
    #: Why it must be replaced although its version is right; empty: it need not.
    broken: str = ""
    history: tuple[Moment, ...] = ()

    @property
    def holds(self) -> tuple[Hold, ...]:
        """Everything that is reserved for it, its own bundle first."""
        return (Hold(self.node_id, self.resources, self.gpus), *self.other_holds)


def transition(
    replica: Replica,
    cause: Cause,
    now: Seconds,
    *,
    at_unix_s: float = 0.0,
    event_id: int = 0,
    detail: str = "",
) -> Replica:
    """Take a replica to the state that follows from `cause`.

    Pure. Invariants: only edges of `TRANSITIONS`; nothing follows a terminal state.

    Raises:
        InvalidTransition: the table has no such edge.
    """
    after = TRANSITIONS.get((replica.state, cause))
    if after is None:
        raise InvalidTransition(
            f"Replica {replica.replica_id} is {replica.state}, where {cause.value!r} cannot happen "
            f"(event {event_id}{', ' + detail if detail else ''}). What led here:\n{story(replica)}"
        )
    moment = Moment(event_id, at_unix_s, replica.state, after, cause, detail)
    return msgspec.structs.replace(
        replica,
        state=after,
        since_s=now,
        was_ready=replica.was_ready or after is _RUNNING,
        history=(*replica.history, moment)[-_KEPT_MOMENTS:],
    )


def story(replica: Replica) -> str:
    """Tell what happened to a replica, one line per change of state. Pure."""
    if not replica.history:
        return f"  {replica.replica_id} was decided and nothing happened since"
    first = replica.history[0].at_unix_s
    return "\n".join(
        f"  +{moment.at_unix_s - first:.3f}s {moment.before} -> {moment.after}: {moment.cause.value}"
        f"{' (' + moment.detail + ')' if moment.detail else ''} [event {moment.event_id}]"
        for moment in replica.history
    )
