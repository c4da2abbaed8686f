"""What `status()` returns, with the names that Ray Serve's users know.

Rules: plain values; no IO. `serve_status` is the one place where the controller's report is
turned into them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from remora.context import ReplicaRank
from remora.options.logging import EncodingType, LoggingConfig
from remora.options.tracing import TracingConfig
from remora.wire.control import InstanceStatus

__all__ = [
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "DeploymentStatus",
    "DeploymentStatusOverview",
    "EncodingType",
    "LoggingConfig",
    "ProxyStatus",
    "ReplicaRank",
    "ReplicaState",
    "ServeStatus",
    "TracingConfig",
    "serve_status",
]


class ApplicationStatus(StrEnum):
    """How an application is."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStatus(StrEnum):
    """How a deployment is."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UPSCALING = "UPSCALING"
    DOWNSCALING = "DOWNSCALING"


class ProxyStatus(StrEnum):
    """How a proxy is."""

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"


@dataclass
class DeploymentStatusOverview:
    """One deployment.

    Attributes:
        status: how it is.
        status_trigger: what brought it there: CONFIG_UPDATE_COMPLETED, REPLICA_STARTUP_FAILED, …
        replica_states: number of replicas by state.
        message: for people; the user's traceback when the code failed.
    """

    status: DeploymentStatus
    status_trigger: str
    replica_states: dict[ReplicaState, int]
    message: str


@dataclass
class ApplicationStatusOverview:
    """One application.

    Attributes:
        status: how it is.
        message: for people.
        last_deployed_time_s: Unix time of the last deploy.
        deployments: by name.
    """

    status: ApplicationStatus
    message: str
    last_deployed_time_s: float
    deployments: dict[str, DeploymentStatusOverview]


@dataclass
class ServeStatus:
    """The whole instance; empty when none runs.

    Attributes:
        proxies: status by name.
        applications: by name.
        target_capacity: always None: no capacity scaling here.
    """

    proxies: dict[str, ProxyStatus] = field(default_factory=dict)
    applications: dict[str, ApplicationStatusOverview] = field(default_factory=dict)
    target_capacity: float | None = None


_E = TypeVar("_E", bound=StrEnum)


def _as(kind: type[_E], text: str) -> _E:
    """The member of that name; text of a newer controller is kept as it is."""
    return kind(text) if text in kind.__members__ else text  # type: ignore[return-value]


def serve_status(report: InstanceStatus) -> ServeStatus:
    """Turn the controller's report into what users see. Pure."""
    return ServeStatus(
        proxies={proxy.name: _as(ProxyStatus, proxy.status) for proxy in report.proxies},
        applications={
            name: ApplicationStatusOverview(
                status=_as(ApplicationStatus, app.status),
                message=app.message,
                last_deployed_time_s=app.last_deployed_time_s,
                deployments={
                    key: DeploymentStatusOverview(
                        status=_as(DeploymentStatus, deployment.status),
                        status_trigger=deployment.status_trigger,
                        replica_states={
                            _as(ReplicaState, state): count
                            for state, count in deployment.replica_states.items()
                        },
                        message=deployment.message,
                    )
                    for key, deployment in app.deployments.items()
                },
            )
            for name, app in report.applications.items()
        },
    )
