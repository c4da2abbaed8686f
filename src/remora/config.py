"""Every user option, once: those of a deployment here, the others in `options`, and found here too.

Frozen structs grouped by who reads them. Python keywords, files, flags, the state file and
the wire derive from these definitions. Defaults are those of Ray Serve unless the field says
why not. Checks live in `__post_init__`, so no value that breaks a rule ever exists.

What a user writes in a decorator is turned into these structs by `options/deployment.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec

from remora.autoscaling_context import AutoscalingContext as AutoscalingContext  # noqa: PLC0414 - found here by users of this module
from remora.errors import ConfigError
from remora.options.autoscaling import AggregationFunction as AggregationFunction  # noqa: PLC0414 - found here by users of this module
from remora.options.autoscaling import AutoscalingConfig as AutoscalingConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.autoscaling import AutoscalingPolicy as AutoscalingPolicy  # noqa: PLC0414 - found here by users of this module
from remora.options.autoscaling import ScalingPolicySetup as ScalingPolicySetup  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import check_keys as check_keys  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import check_keywords as check_keywords  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import nearest as nearest  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import require_json as require_json  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import require_number as require_number  # noqa: PLC0414 - found here by users of this module
from remora.options.grpc import grpc_options as grpc_options  # noqa: PLC0414 - found here by users of this module
from remora.options.grpc import gRPCOptions as gRPCOptions  # noqa: PLC0414 - found here by users of this module
from remora.options.http import HTTPOptions as HTTPOptions  # noqa: PLC0414 - found here by users of this module
from remora.options.http import ProxyLocation as ProxyLocation  # noqa: PLC0414 - found here by users of this module
from remora.options.http import http_options as http_options  # noqa: PLC0414 - found here by users of this module
from remora.options.http import proxy_location as proxy_location  # noqa: PLC0414 - found here by users of this module
from remora.options.http import with_absolute_paths as with_absolute_paths  # noqa: PLC0414 - found here by users of this module
from remora.options.instance import ADMIN as ADMIN  # noqa: PLC0414 - found here by users of this module
from remora.options.instance import LOCAL_ENGINE as LOCAL_ENGINE  # noqa: PLC0414 - found here by users of this module
from remora.options.instance import AdminOptions as AdminOptions  # noqa: PLC0414 - found here by users of this module
from remora.options.instance import EngineOptions as EngineOptions  # noqa: PLC0414 - found here by users of this module
from remora.options.instance import admin_options as admin_options  # noqa: PLC0414 - found here by users of this module
from remora.options.instance import engine_options as engine_options  # noqa: PLC0414 - found here by users of this module
from remora.options.logging import LoggingConfig
from remora.options.resources import DeploymentActorConfig as DeploymentActorConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.resources import GangPlacementStrategy as GangPlacementStrategy  # noqa: PLC0414 - found here by users of this module
from remora.options.resources import (
    GangRuntimeFailurePolicy as GangRuntimeFailurePolicy,  # noqa: PLC0414 - found here by users of this module
)
from remora.options.resources import GangSchedulingConfig as GangSchedulingConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.resources import RuntimeEnv as RuntimeEnv  # noqa: PLC0414 - found here by users of this module
from remora.options.routing import DEFAULT_ROUTER_CLASS as DEFAULT_ROUTER_CLASS  # noqa: PLC0414 - found here by users of this module
from remora.options.routing import BackpressureConfig as BackpressureConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.routing import PolicySetup as PolicySetup  # noqa: PLC0414 - found here by users of this module
from remora.options.routing import RequestRouterConfig as RequestRouterConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.warmup import WarmupRequest as WarmupRequest  # noqa: PLC0414 - found here by users of this module
from remora.types import DeploymentID as DeploymentID  # noqa: PLC0414 - found here by users of this module


class _Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


#: Stands for an option that the user did not set. None is a value of its own.
UNSET: Final = _Unset.UNSET


ROLLBACKS = ("auto", "manual")


class DeploymentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of one deployment that the controller, routers and replicas read."""

    #: Target number of replicas, >= 1.
    num_replicas: int = 1
    #: Requests that one replica works on at a time, >= 1.
    max_ongoing_requests: int = 5
    #: Requests that may wait for a replica, whoever calls; -1: no limit.
    max_queued_requests: int = -1
    #: Handed to the class's `reconfigure`; any JSON value; None: not set.
    user_config: object = None
    #: Seconds between two health checks, > 0.
    health_check_period_s: float = 10.0
    #: Seconds a health check may take, > 0.
    health_check_timeout_s: float = 30.0
    #: Kept for compatibility: a draining replica notices the end of its last request at once.
    graceful_shutdown_wait_loop_s: float = 2.0
    #: Seconds that a draining replica has for its ongoing requests before it is killed, >= 0.
    graceful_shutdown_timeout_s: float = 20.0
    #: Constructor failures in a row, capped at 3 per target replica, after which a deploy fails.
    max_constructor_retry_count: int = 20
    #: Share of the target that a roll-out replaces at a time, in (0, 1].
    rolling_update_percentage: float = 0.2
    #: Extra replicas during a roll-out, in per cent of the target, 0..100. 0 still allows one:
    #: an old replica never leaves before a new one is ready.
    max_surge_percent: int = 0
    #: After a failed roll-out: `auto`: the application goes back to what worked before and is
    #: declared to be that; `manual`: the version before serves, until somebody deploys again.
    rollback: str = "manual"
    #: Replicas of a new version that must run for a deploy to count as done, >= 1, <= the target;
    #: the others come after. None: all.
    required_ready_replicas: int | None = None
    #: What a new replica answers before it gets requests; one that fails fails its start.
    warmup_requests: tuple[WarmupRequest, ...] = ()
    #: How a full queue is answered.
    backpressure_config: BackpressureConfig = BackpressureConfig()
    #: Requests may run twice: a replica's death is answered by a retry.
    idempotent: bool = False
    #: Resources reserved for each replica: `CPU`, `GPU`, `memory` (bytes) and custom names.
    resources: dict[str, float] = {}
    #: Environment variables of the replica's process.
    env_vars: dict[str, str] = {}
    #: Packages and folders of the replica's process.
    runtime_env: RuntimeEnv = RuntimeEnv()
    #: Labels that a node must have: a value, `!value`, `in(a,b)` or `!in(a,b)` by name.
    label_selector: dict[str, str] = {}
    #: Selectors to try in this order where no node fits that one.
    fallback_selectors: tuple[dict[str, str], ...] = ()
    #: Replicas on one node, 1..100; None: no limit.
    max_replicas_per_node: int | None = None
    #: Resources that are reserved together for each replica, which is in the first one; empty:
    #: only `resources`.
    placement_group_bundles: tuple[dict[str, float], ...] = ()
    #: How the bundles lie: `PACK`, `SPREAD`, `STRICT_PACK` or `STRICT_SPREAD`.
    placement_group_strategy: str = "PACK"
    #: A selector for each bundle, or one for all.
    placement_group_bundle_label_selector: tuple[dict[str, str], ...] = ()
    #: Replicas that come and go together; None: each for itself.
    gang_scheduling_config: GangSchedulingConfig | None = None
    #: Loaded once for all replicas of a machine: `module`, or `module:function`.
    preload: tuple[str, ...] = ()
    #: Objects in processes of their own that the replicas share.
    deployment_actors: tuple[DeploymentActorConfig, ...] = ()
    #: What follows from it: the deployments that hold them, by their names; no option.
    actors: dict[str, str] = {}
    #: Of such a deployment: whose actor it holds, and the actor's name; no options.
    actor_of: str = ""
    actor_name: str = ""
    #: How requests find their replica.
    request_router_config: RequestRouterConfig = RequestRouterConfig()
    #: What follows from it for routers; no option of its own.
    policy: PolicySetup = PolicySetup()
    #: How replicas log; None: as the application or the instance says.
    logging_config: LoggingConfig | None = None
    #: How many replicas there are, by demand; None: `num_replicas`, whatever the demand.
    autoscaling_config: AutoscalingConfig | None = None
    #: What follows from its policy for the controller; no option of its own.
    scaling_policy: ScalingPolicySetup = ScalingPolicySetup()

    @property
    def gang_size(self) -> int:
        """How many replicas come together; 1: each on its own."""
        gang = self.gang_scheduling_config
        return 1 if gang is None else gang.gang_size

    def __post_init__(self) -> None:
        require_number("num_replicas", self.num_replicas, low=1, whole=True)
        require_number("max_ongoing_requests", self.max_ongoing_requests, low=1, whole=True)
        require_number("max_queued_requests", self.max_queued_requests, low=-1, whole=True)
        if self.max_queued_requests == 0:
            raise ConfigError("max_queued_requests", 0, "must be -1 (no limit) or >= 1")
        require_number("health_check_period_s", self.health_check_period_s, above=0)
        require_number("health_check_timeout_s", self.health_check_timeout_s, above=0)
        require_number("graceful_shutdown_wait_loop_s", self.graceful_shutdown_wait_loop_s, low=0)
        require_number("graceful_shutdown_timeout_s", self.graceful_shutdown_timeout_s, low=0)
        require_number(
            "max_constructor_retry_count", self.max_constructor_retry_count, low=1, whole=True
        )
        require_number("rolling_update_percentage", self.rolling_update_percentage, above=0, high=1)
        if self.rollback not in ROLLBACKS:
            raise ConfigError("rollback", self.rollback, f"one of {', '.join(ROLLBACKS)}")
        number = self.required_ready_replicas
        require_number("required_ready_replicas", number, low=1, whole=True, or_none=True)
        require_number("max_surge_percent", self.max_surge_percent, low=0, high=100, whole=True)
        for name, amount in self.resources.items():
            require_number(f"resources[{name!r}]", amount, low=0)


def with_resources(config: DeploymentConfig, defaults: Mapping[str, float]) -> DeploymentConfig:
    """Fill in what a replica takes whose deployment does not say. Pure."""
    if config.placement_group_bundles or all(name in config.resources for name in defaults):
        return config
    return msgspec.structs.replace(config, resources={**defaults, **config.resources})
