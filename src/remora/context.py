"""What a replica knows about itself: `get_replica_context()`.

The replica's main calls `set_replica_context` before it constructs the user's object. One
process is one replica, so this is a fact of the process, not of a request (that is
`request_context`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remora.errors import RemoraError
from remora.types import DeploymentID


@dataclass(frozen=True)
class ReplicaRank:
    """Where a replica stands among its deployment's.

    Attributes:
        rank: 0 … world_size - 1.
        node_rank: of its node.
        local_rank: among the replicas on its node.
    """

    rank: int = 0
    node_rank: int = 0
    local_rank: int = 0


@dataclass
class ReplicaContext:
    """The replica that this code runs in.

    Attributes:
        replica_id: never used twice.
        deployment_id: application and deployment.
        servable_object: the user's object; None while it is being constructed.
        rank: where this replica stands among its deployment's.
        world_size: target number of replicas.
        code_version: equal for equal code and arguments.
        gang_context: always None: no gangs here.
    """

    replica_id: str
    deployment_id: DeploymentID
    servable_object: Any = None
    rank: ReplicaRank = ReplicaRank()
    world_size: int = 1
    code_version: str = ""
    gang_context: None = None

    @property
    def app_name(self) -> str:
        """Name of the application."""
        return self.deployment_id.app_name

    @property
    def deployment(self) -> str:
        """Name of the deployment."""
        return self.deployment_id.name

    @property
    def replica_tag(self) -> str:
        """The part of the replica's id that is its own, after the `#`."""
        return self.replica_id.rpartition("#")[2]


_context: ReplicaContext | None = None


def set_replica_context(context: ReplicaContext | None) -> None:
    """Say which replica this process is."""
    global _context
    _context = context


def replica_context_or_none() -> ReplicaContext | None:
    """The replica that this code runs in; None: in none."""
    return _context


def get_replica_context() -> ReplicaContext:
    """The replica that this code runs in.

    Raises:
        RemoraError: in none.
    """
    if _context is None:
        raise RemoraError(
            "get_replica_context() works only inside a replica: in the constructor or a method "
            "of a deployment"
        )
    return _context
