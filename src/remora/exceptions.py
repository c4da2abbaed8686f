"""The errors that users catch, under the module path that Ray Serve's users know."""

from remora.errors import (
    BackPressureError,
    ConfigError,
    DeployError,
    DeploymentUnavailableError,
    NotDeployedError,
    RayServeException,
    RemoraError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    RequestCancelledError,
    RequestTimeoutError,
    gRPCStatusError,
)

__all__ = [
    "BackPressureError",
    "ConfigError",
    "DeployError",
    "DeploymentUnavailableError",
    "NotDeployedError",
    "RayServeException",
    "RemoraError",
    "ReplicaDiedError",
    "ReplicaUnavailableError",
    "RequestCancelledError",
    "RequestTimeoutError",
    "gRPCStatusError",
]
