"""What is said about load, demand and numbers of replicas, as plain structs.

Methods of the controller, beside those of `wire/control.py`:

    demand(Subscription) -> stream of DemandWanted    for which deployments a router is to report
    report(DemandReport) -> None         how many requests wait in the caller's routers
    scale(ScaleRequest) -> None          an outside scaler sets a number of replicas
    capacity(CapacityRequest) -> None    switches on a share of everything
    scaling(ScalingRequest) -> ScalingDetails    how deployments are scaled, and why

Methods of a replica:

    load(LoadWanted) -> stream of ReplicaLoad    how many requests it works on, when that changes

Methods of a policy process:

    load(PolicySpec) -> None             raises what loading the user's code raised
    decide(PolicyQuestion) -> PolicyAnswer
"""

from __future__ import annotations

import msgspec

from remora.core.autoscale.record import ScalingRecord
from remora.options.autoscaling import AutoscalingConfig, ScalingPolicySetup
from remora.types import DeploymentID, ReplicaID, Seconds
from remora.wire.control import Surroundings


class LoadWanted(msgspec.Struct, frozen=True):
    """How a replica is to report."""

    #: Seconds between two reports while the number changes.
    report_s: Seconds
    #: Seconds between two reports in any case, and between two calls of
    #: `record_autoscaling_stats`.
    interval_s: Seconds


class ReplicaLoad(msgspec.Struct, array_like=True, frozen=True):
    """What a replica works on."""

    #: Ongoing requests: the mean since the last report. None: only metrics come.
    ongoing: float | None = None
    #: What `record_autoscaling_stats` returned; None: nothing new.
    metrics: dict[str, float] | None = None


class DemandWanted(msgspec.Struct, frozen=True):
    """Deployments whose queues are to be reported, with seconds between two reports."""

    deployments: dict[DeploymentID, Seconds]


class DemandReport(msgspec.Struct, frozen=True):
    """How many requests wait in the routers of one process: what has changed."""

    #: The same name as in `Subscription`.
    subscriber: str
    queued: dict[DeploymentID, float]


class ScaleRequest(msgspec.Struct, frozen=True):
    """An outside scaler wants so many replicas."""

    app_name: str
    deployment: str
    num_replicas: int


class CapacityRequest(msgspec.Struct, frozen=True):
    """Per cent of everything to switch on; None: all of it."""

    percent: float | None


class ScalingRequest(msgspec.Struct, frozen=True):
    """Which deployments; None: all of them."""

    app_name: str | None = None
    deployment: str | None = None
    #: With the decisions of controllers before this one, which takes a look into the event log.
    past: bool = False


class ScalingDetail(msgspec.Struct, frozen=True, kw_only=True):
    """How one deployment is scaled."""

    app_name: str
    deployment: str
    #: `demand`, `outside` or `options`: who says the number.
    by: str
    #: UPSCALING, DOWNSCALING or STABLE.
    status: str
    target_num_replicas: int
    running: int
    low: int
    high: int
    #: What is decided just now, whether it changes anything or not.
    latest: ScalingRecord | None = None
    #: Those that changed the number, oldest first.
    decisions: tuple[ScalingRecord, ...] = ()
    #: `queued`, `running` and `total` as they are just now, and the custom ones, aggregated.
    metrics: dict[str, float] = {}
    #: healthy, delayed (a replica is silent) or unavailable (none has reported).
    metrics_health: str = "healthy"
    errors: tuple[str, ...] = ()


class ScalingDetails(msgspec.Struct, frozen=True):
    """One for each deployment that was asked about."""

    deployments: tuple[ScalingDetail, ...]


class PolicySpec(msgspec.Struct, frozen=True, kw_only=True):
    """A policy to load."""

    setup: ScalingPolicySetup
    surroundings: Surroundings
    #: `deployment` or `application`.
    scope: str
    #: For messages.
    name: str


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment as a policy sees it: becomes an `AutoscalingContext`."""

    deployment: DeploymentID
    current_num_replicas: int
    target_num_replicas: int
    running_replicas: tuple[ReplicaID, ...]
    total_num_requests: float
    total_queued_requests: float
    aggregated_metrics: dict[str, dict[ReplicaID, float]]
    #: Values with their Unix times.
    raw_metrics: dict[str, dict[ReplicaID, list[tuple[float, float]]]]
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    #: Unix time.
    last_scale_up_time: float | None
    last_scale_down_time: float | None
    current_time: float
    config: AutoscalingConfig


class PolicyQuestion(msgspec.Struct, frozen=True):
    """The deployments that a policy decides about: one, or those of an application."""

    views: tuple[PolicyView, ...]


class PolicyAnswer(msgspec.Struct, frozen=True):
    """The number for each deployment; those left out keep theirs."""

    nums: dict[DeploymentID, float]
