"""Everything that the controller can learn, as values.

The state of the controller is a function of these, in order: replaying the log gives the same
state, though health checks that found well what was well are left out of it. Each event has an id,
and a replica's story names the events that moved it.

Rules: plain frozen values; only facts, no decisions.
"""

from __future__ import annotations

import msgspec

from remora.core.autoscale.record import ScalingRecord
from remora.core.submission import ApplicationRequest, DeploymentRequest
from remora.types import NodeID, ReplicaID
from remora.wire.control import DeclaredApplication, ReplicaSpec

__all__ = ["ApplicationRequest", "DeploymentRequest"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all events."""

    #: Grows by one with every event of an instance, over controller restarts too.
    event_id: int = 0


class ControllerStarted(Event, frozen=True, kw_only=True):
    """A controller begins its work, with or without a state from before."""

    unix_s: float
    #: Makes replica ids of this state different from those of every other state.
    salt: str = ""
    #: It is the first one of an instance that has just started, not a successor.
    new_instance: bool = False
    #: The applications of the instance before it belonged to a program that has ended.
    forget: bool = False
    #: The engine's nodes are all that there will ever be.
    fixed_nodes: bool = False
    #: Part of the saved state is missing or damaged: replicas that nobody knows are asked.
    rebuild: bool = False


class InventoryComplete(Event, frozen=True, kw_only=True):
    """The engine has reported every process that was alive when the controller connected."""


class DeployRequested(Event, frozen=True, kw_only=True):
    """Somebody wants these applications to look like this."""

    applications: tuple[ApplicationRequest, ...]
    #: Who or what it comes from, for people.
    source: str = ""
    #: Of the rollback that this is; empty: it is none, or cannot be asked for again.
    request_id: str = ""


class ConfigSubmitted(Event, frozen=True, kw_only=True):
    """Somebody wants these applications, and of those that a config declared no others."""

    applications: tuple[DeclaredApplication, ...]
    #: Per cent of the replicas of every deployment that are switched on; None: all.
    target_capacity: float | None = None
    #: Who or what it comes from, for people.
    source: str = ""
    #: The release that this one goes back to; 0: it is new.
    rollback_to: int = 0
    #: Of the rollback that this is; empty: it is none, or cannot be asked for again.
    request_id: str = ""


class ApplicationBuilt(Event, frozen=True, kw_only=True):
    """An application of a config was imported; its code lies in the store."""

    release: int
    application: ApplicationRequest


class ApplicationNotBuilt(Event, frozen=True, kw_only=True):
    """An application of a config cannot be imported."""

    release: int
    name: str
    #: With the user's traceback.
    error: str


class DeleteRequested(Event, frozen=True, kw_only=True):
    """Somebody wants these applications to go."""

    names: tuple[str, ...]
    #: Who or what it comes from, for people.
    source: str = ""


class ShutdownRequested(Event, frozen=True, kw_only=True):
    """Somebody wants the whole instance to end."""


class ScaleRequested(Event, frozen=True, kw_only=True):
    """Somebody outside wants a deployment to have so many replicas."""

    app_name: str
    deployment: str
    num_replicas: int


class CapacityRequested(Event, frozen=True, kw_only=True):
    """Somebody wants this share of everything switched on, in per cent; None: all of it."""

    percent: float | None


class ScaleDecided(Event, frozen=True, kw_only=True):
    """Demand asks for another number of replicas; the record says why."""

    app_name: str
    deployment: str
    record: ScalingRecord


class ProcessStarted(Event, frozen=True, kw_only=True):
    """A process exists and its address takes connections."""

    replica_id: ReplicaID
    address: str
    pid: int
    node_id: NodeID


class ProcessPreparing(Event, frozen=True, kw_only=True):
    """The engine is at work before there is a process; what follows may take long."""

    replica_id: ReplicaID
    what: str


class ProcessExited(Event, frozen=True, kw_only=True):
    """A process is gone, or could not be started."""

    replica_id: ReplicaID
    reason: str
    #: It was asked to end, or ended with status 0: no news for people.
    expected: bool = False
    #: Its node could not take it, and takes no more.
    refused: bool = False


class NodeJoined(Event, frozen=True, kw_only=True):
    """A node can take processes."""

    node_id: NodeID
    resources: dict[str, float]
    labels: dict[str, str] = {}
    #: For people.
    host: str = ""
    role: str = ""


class NodeRefused(Event, frozen=True, kw_only=True):
    """A node takes no new processes for now: what is there stays. `NodeJoined` ends that."""

    node_id: NodeID
    #: Why, for people; no full stop.
    reason: str
    #: Nothing is wrong: it is being made ready.
    is_joining: bool = False
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    #: For people.
    host: str = ""
    role: str = ""


class NodeDraining(Event, frozen=True, kw_only=True):
    """A node goes away soon: its replicas are replaced elsewhere."""

    node_id: NodeID


class NodeLost(Event, frozen=True, kw_only=True):
    """A node is gone; the exits of its processes are reported as well."""

    node_id: NodeID


class DoorsChanged(Event, frozen=True, kw_only=True):
    """The front doors of a node are about to go, or stay after all."""

    node_id: NodeID
    closing: bool


class ReplicaReady(Event, frozen=True, kw_only=True):
    """A replica says that it is constructed, warm and healthy."""

    replica_id: ReplicaID
    docs_path: str = ""


class ReplicaStartFailed(Event, frozen=True, kw_only=True):
    """The user's constructor or first health check raised."""

    replica_id: ReplicaID
    traceback: str


class ReplicaDescribed(Event, frozen=True, kw_only=True):
    """A replica that nobody knew has said what it is."""

    replica_id: ReplicaID
    #: Why it did not; the rest is empty then.
    error: str = ""
    code_key: str = ""
    #: Without its code.
    spec: ReplicaSpec | None = None


class HealthChecked(Event, frozen=True, kw_only=True):
    """A health check has ended."""

    replica_id: ReplicaID
    #: What went wrong; empty: nothing.
    error: str = ""
    #: True: there was no answer in time.
    timed_out: bool = False


class Reconfigured(Event, frozen=True, kw_only=True):
    """A replica has taken, or refused, new options."""

    replica_id: ReplicaID
    config_key: str
    #: The user's traceback; empty: it worked.
    error: str = ""


class ReplicaIdle(Event, frozen=True, kw_only=True):
    """A draining replica has ended its last request."""

    replica_id: ReplicaID


class CallLost(Event, frozen=True, kw_only=True):
    """A call to a replica ended without an answer: its connection broke."""

    replica_id: ReplicaID
    call: str
    reason: str = ""


class RoutersAcked(Event, frozen=True, kw_only=True):
    """Every connected router has applied at least this version of the snapshot."""

    version: int


AnyEvent = (
    ControllerStarted
    | InventoryComplete
    | DeployRequested
    | ConfigSubmitted
    | ApplicationBuilt
    | ApplicationNotBuilt
    | DeleteRequested
    | ShutdownRequested
    | ScaleRequested
    | CapacityRequested
    | ScaleDecided
    | ProcessStarted
    | ProcessPreparing
    | ProcessExited
    | NodeJoined
    | NodeRefused
    | NodeDraining
    | NodeLost
    | DoorsChanged
    | ReplicaReady
    | ReplicaStartFailed
    | ReplicaDescribed
    | HealthChecked
    | Reconfigured
    | ReplicaIdle
    | CallLost
    | RoutersAcked
)

#: What somebody waits for: checked before it is accepted, refused when it cannot be saved.
Request = (
    DeployRequested
    | ConfigSubmitted
    | ApplicationBuilt
    | DeleteRequested
    | ShutdownRequested
    | ScaleRequested
    | CapacityRequested
)


class LogEntry(msgspec.Struct, frozen=True):
    """One tick of the controller: what it observed and when."""

    now_s: float
    events: tuple[AnyEvent, ...]
