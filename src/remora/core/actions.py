"""Everything that the controller can do, as values: `reconcile.step` decides, `applier` does.

Each action is answered by events sooner or later; until then the state remembers that it is
under way. For one replica there is at most one call under way: a later one replaces it.

Rules: plain frozen values, complete: doing one needs no look into the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remora.config import DeploymentConfig
from remora.core.ranks import Ranks
from remora.types import LOCAL_NODE, ReplicaID, Seconds
from remora.wire.control import DeclaredApplication, ReplicaSpec, Surroundings
from remora.wire.holds import Hold


@dataclass(frozen=True)
class StartProcess:
    """Answered by ProcessStarted or ProcessExited."""

    replica_id: ReplicaID
    app_name: str
    deployment: str
    code_version: str
    config: DeploymentConfig
    surroundings: Surroundings
    env: dict[str, str] = field(default_factory=dict)
    holds: tuple[Hold, ...] = (Hold(LOCAL_NODE),)


@dataclass(frozen=True)
class InitializeReplica:
    """Answered by ReplicaReady, ReplicaStartFailed or CallLost; no time limit."""

    replica_id: ReplicaID
    address: str
    code_key: str
    spec: ReplicaSpec


@dataclass(frozen=True)
class CheckHealth:
    """Answered by HealthChecked."""

    replica_id: ReplicaID
    address: str
    timeout_s: Seconds


@dataclass(frozen=True)
class Reconfigure:
    """Answered by Reconfigured or CallLost."""

    replica_id: ReplicaID
    address: str
    config: DeploymentConfig
    config_key: str
    ranks: Ranks
    revision: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class DescribeReplica:
    """Ask a replica that nobody knows what it is; answered by ReplicaDescribed."""

    replica_id: ReplicaID
    address: str


@dataclass(frozen=True)
class DrainReplica:
    """Answered by ReplicaIdle or CallLost."""

    replica_id: ReplicaID
    address: str


@dataclass(frozen=True)
class StopReplica:
    """Run the destructor, end the process, kill it after `timeout_s`; answered by ProcessExited."""

    replica_id: ReplicaID
    address: str
    timeout_s: Seconds


@dataclass(frozen=True)
class KillProcess:
    """End a process at once; answered by ProcessExited if there is one."""

    replica_id: ReplicaID


@dataclass(frozen=True)
class BuildApplication:
    """Import an application in a process; answered by ApplicationBuilt or ApplicationNotBuilt."""

    release: int
    application: DeclaredApplication


@dataclass(frozen=True)
class CancelBuilds:
    """Nobody wants to know any more what releases before this one lead to."""

    before: int


@dataclass(frozen=True)
class EndInstance:
    """Nothing is left to serve and somebody asked for the end."""


Action = (
    StartProcess
    | InitializeReplica
    | CheckHealth
    | Reconfigure
    | DescribeReplica
    | DrainReplica
    | StopReplica
    | KillProcess
    | BuildApplication
    | CancelBuilds
    | EndInstance
)
