"""The ids and units that every other module speaks in.

Rules: no imports from the rest of the package, no behaviour beyond naming and printing.
"""

from __future__ import annotations

from typing import NamedTuple, NewType

#: Durations and points in time, in seconds. Points in time come from a monotonic clock
#: unless the name says `unix`.
Seconds = float

#: `<app>/<deployment>#<suffix>`; never used twice. `#` cannot occur in a deployment name,
#: so the deployment is everything before the last `#`.
ReplicaID = NewType("ReplicaID", str)

#: A node of the engine. The embedded engine has exactly one, `LOCAL_NODE`.
NodeID = NewType("NodeID", str)

LOCAL_NODE = NodeID("local")

#: The application name used when none is given.
DEFAULT_APP_NAME = "default"


class DeploymentID(NamedTuple):
    """A deployment inside an application: the unit that handles point at.

    Attributes:
        name: name of the deployment, unique inside its application, without `#`.
        app_name: name of the application.
    """

    name: str
    app_name: str = DEFAULT_APP_NAME

    def __str__(self) -> str:
        return f"{self.app_name}/{self.name}"


def replica_id(deployment: DeploymentID, suffix: str) -> ReplicaID:
    """Name a replica of `deployment`; `suffix` must be new for that deployment."""
    return ReplicaID(f"{deployment}#{suffix}")


def is_replica(process_id: str) -> bool:
    """Tell a replica from all other processes by its id: only those have a `#`.

    Pure. To be asked before anything else is read from an id: applications choose how the ids of
    their replicas begin.
    """
    return "#" in process_id
