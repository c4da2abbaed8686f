"""What a policy of the user's gets to see of a deployment.

Users find these in `remora.config`.

Rules: plain values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from remora.options.autoscaling import AutoscalingConfig
from remora.types import DeploymentID, ReplicaID


@dataclass(frozen=True)
class TimeStampedValue:
    """A number and when it was recorded, in Unix time."""

    timestamp: float
    value: float


@dataclass(frozen=True)
class AutoscalingContext:
    """One deployment at one moment.

    Attributes:
        current_num_replicas: replicas that run.
        target_num_replicas: replicas that there should be.
        total_num_requests: requests, ongoing and waiting, over the window.
        total_queued_requests: those that wait for a replica.
        total_running_requests: those that a replica works on.
        aggregated_metrics: what `record_autoscaling_stats` returned, by name and replica, over
            the window.
        raw_metrics: the values themselves, with times.
        capacity_adjusted_min_replicas: the number is raised to this afterwards.
        capacity_adjusted_max_replicas: the number is lowered to this afterwards.
        policy_state: what this policy returned last time.
        last_scale_up_time: Unix time; None: never so far.
        last_scale_down_time: Unix time; None: never so far.
        current_time: Unix time.
        config: how the deployment is scaled.
    """

    deployment_id: DeploymentID
    current_num_replicas: int
    target_num_replicas: int
    running_replicas: list[ReplicaID]
    total_num_requests: float
    total_queued_requests: float
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    current_time: float
    config: AutoscalingConfig
    aggregated_metrics: dict[str, dict[ReplicaID, float]] = field(default_factory=dict)
    raw_metrics: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = field(default_factory=dict)
    policy_state: dict[str, Any] = field(default_factory=dict)
    last_scale_up_time: float | None = None
    last_scale_down_time: float | None = None

    @property
    def deployment_name(self) -> str:
        """Name of the deployment."""
        return self.deployment_id.name

    @property
    def app_name(self) -> str:
        """Name of its application."""
        return self.deployment_id.app_name

    @property
    def total_running_requests(self) -> float:
        """Requests that a replica works on."""
        return max(0.0, self.total_num_requests - self.total_queued_requests)
