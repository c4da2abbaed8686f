"""How a deployment is scaled by demand: every option of it, once.

Users find these in `remora.config`, which is where they are documented. They stand here because
`DeploymentConfig` has them as a part.

Rules: values and their checks; the decisions are in `core/autoscale`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import (
    Named,
    check_keys,
    is_import_path,
    nearest,
    require_json,
    require_number,
    struct_of,
)

#: Queue lengths against `target_ongoing_requests`.
DEFAULT_POLICY = "remora.autoscaling_policy:default_autoscaling_policy"
#: Other names of the same function, which Ray Serve's users know.
_DEFAULT_NAMES = frozenset(
    {
        DEFAULT_POLICY,
        "remora.autoscaling_policy.default_autoscaling_policy",
        "remora.autoscaling_policy:replica_queue_length_autoscaling_policy",
        "remora.autoscaling_policy.replica_queue_length_autoscaling_policy",
    }
)
AGGREGATIONS = ("mean", "max", "min")


class AggregationFunction(StrEnum):
    """What is made of the demand over a window; the plain texts do as well."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


_FIELD = "autoscaling_config"
#: With `num_replicas="auto"`.
AUTO_MAX_REPLICAS = 100


class AutoscalingPolicy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=Named
):
    """Who says how many replicas there should be."""

    #: A function, a class whose instances are called, or the import path of either.
    policy_function: Any = DEFAULT_POLICY
    #: Handed to the constructor of a class, or to a function as keywords; JSON values.
    policy_kwargs: dict[str, Any] = {}

    def __post_init__(self) -> None:
        field = f"{_FIELD}.policy"
        given = self.policy_function
        if not callable(given) and not (isinstance(given, str) and is_import_path(given)):
            raise ConfigError(
                f"{field}.policy_function",
                given,
                "must be a function, a class, or 'module:name' of one",
            )
        if not isinstance(self.policy_kwargs, dict):
            raise ConfigError(f"{field}.policy_kwargs", self.policy_kwargs, "must be a dict")
        require_json(f"{field}.policy_kwargs", self.policy_kwargs)

    @property
    def is_default(self) -> bool:
        """The one that needs no user code."""
        given = self.policy_function
        if not isinstance(given, str):
            given = f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', '')}"
        return given in _DEFAULT_NAMES


class ScalingPolicySetup(msgspec.Struct, array_like=True, frozen=True):
    """What a policy process needs to make a policy. Derived from `AutoscalingPolicy`, no option."""

    #: For people; empty: the default policy, which no process is needed for.
    path: str = ""
    #: The function or class, pickled; opened only by the policy's process.
    code: bytes = b""
    kwargs: dict[str, Any] = {}


class AutoscalingConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=Named
):
    """How many replicas a deployment has, by demand."""

    #: At least so many, >= 0; 0: none while nobody asks anything.
    min_replicas: int = 1
    #: So many at first, between the two; None: `min_replicas`.
    initial_replicas: int | None = None
    #: At most so many, >= 1; 100 with `num_replicas="auto"`.
    max_replicas: int = 1
    #: Requests, ongoing and waiting, that there should be for each replica, > 0.
    target_ongoing_requests: float = 2.0
    #: Seconds between two reports of a source when nothing changes, > 0; changes come at once.
    metrics_interval_s: float = 10.0
    #: Seconds over which demand is aggregated, > 0.
    look_back_period_s: float = 30.0
    #: Both of the next two, where they are not given; deprecated.
    smoothing_factor: float = 1.0
    #: Old names of the two below; deprecated.
    upscale_smoothing_factor: float | None = None
    downscale_smoothing_factor: float | None = None
    #: How much of the way to the number that demand asks for is gone at once, > 0.
    upscaling_factor: float | None = None
    downscaling_factor: float | None = None
    #: Seconds for which more replicas must be needed before they are started, >= 0.
    upscale_delay_s: float = 30.0
    #: Seconds for which fewer must be enough before some are stopped, >= 0.
    downscale_delay_s: float = 600.0
    #: The same for the last one; None: as above.
    downscale_to_zero_delay_s: float | None = None
    #: What is made of the demand in the window: `mean`, `max` or `min`.
    aggregation_function: str = "mean"
    #: Who decides.
    policy: AutoscalingPolicy = AutoscalingPolicy()
    #: Seconds of a short window beside the long one; None: no panic. When its demand asks for
    #: `panic_threshold` times the target, replicas are started without delay and none is stopped.
    panic_window_s: float | None = None
    #: >= 1.
    panic_threshold: float = 2.0
    #: Replicas beyond what demand asks for, while there is any, >= 0.
    spare_replicas: int = 0

    def __post_init__(self) -> None:
        self._check_counts()
        for name in ("target_ongoing_requests", "metrics_interval_s", "look_back_period_s"):
            require_number(f"{_FIELD}.{name}", getattr(self, name), above=0)
        for name in ("upscale_delay_s", "downscale_delay_s"):
            require_number(f"{_FIELD}.{name}", getattr(self, name), low=0)
        for name in _FACTORS:
            or_none = name != "smoothing_factor"
            require_number(f"{_FIELD}.{name}", getattr(self, name), above=0, or_none=or_none)
        name = f"{_FIELD}.downscale_to_zero_delay_s"
        require_number(name, self.downscale_to_zero_delay_s, low=0, or_none=True)
        require_number(f"{_FIELD}.panic_window_s", self.panic_window_s, above=0, or_none=True)
        require_number(f"{_FIELD}.panic_threshold", self.panic_threshold, low=1)
        self._check_aggregation()

    def _check_counts(self) -> None:
        low = self.min_replicas
        require_number(f"{_FIELD}.min_replicas", low, low=0, whole=True)
        require_number(f"{_FIELD}.max_replicas", self.max_replicas, low=max(1, low), whole=True)
        require_number(f"{_FIELD}.spare_replicas", self.spare_replicas, low=0, whole=True)
        name, high = f"{_FIELD}.initial_replicas", self.max_replicas
        require_number(name, self.initial_replicas, low=low, high=high, whole=True, or_none=True)

    def _check_aggregation(self) -> None:
        given: object = self.aggregation_function
        name = given.lower() if isinstance(given, str) else ""
        if name not in AGGREGATIONS:
            hint = nearest(name, AGGREGATIONS)
            raise ConfigError(
                f"{_FIELD}.aggregation_function", given, f"one of {', '.join(AGGREGATIONS)}.{hint}"
            )
        if type(given) is not str or name != given:
            msgspec.structs.force_setattr(self, "aggregation_function", name)

    @property
    def first_replicas(self) -> int:
        """How many there are at first."""
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas

    @property
    def up_factor(self) -> float:
        """The factor for more, by the precedence of its names."""
        for given in (self.upscaling_factor, self.upscale_smoothing_factor):
            if given is not None:
                return given
        return self.smoothing_factor

    @property
    def down_factor(self) -> float:
        """The factor for fewer, by the precedence of its names."""
        for given in (self.downscaling_factor, self.downscale_smoothing_factor):
            if given is not None:
                return given
        return self.smoothing_factor

    @property
    def to_zero_delay_s(self) -> float:
        """The delay for the last replica."""
        given = self.downscale_to_zero_delay_s
        return self.downscale_delay_s if given is None else given


_FACTORS = (
    "smoothing_factor",
    "upscale_smoothing_factor",
    "downscale_smoothing_factor",
    "upscaling_factor",
    "downscaling_factor",
)
#: Names that still work, and what to write instead.
DEPRECATED = {
    "smoothing_factor": "upscaling_factor and downscaling_factor",
    "upscale_smoothing_factor": "upscaling_factor",
    "downscale_smoothing_factor": "downscaling_factor",
}


def autoscaling_config(given: object, *, auto: bool = False) -> AutoscalingConfig:
    """Turn what a user passes as `autoscaling_config` into the struct.

    Args:
        given: a dict, an `AutoscalingConfig`, or None for the defaults.
        auto: beside `num_replicas="auto"`, which has another default for `max_replicas`.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    if isinstance(given, AutoscalingConfig):
        return given
    if given is not None and not isinstance(given, dict):
        raise ConfigError(_FIELD, given, "must be a dict or AutoscalingConfig")
    options = dict(given or {})
    check_keys(_FIELD, options, AutoscalingConfig.__struct_fields__)
    if auto:
        low = options.get("min_replicas", 0)
        floor = low if isinstance(low, int) else 0
        options.setdefault("max_replicas", max(AUTO_MAX_REPLICAS, floor))
    if "policy" in options:
        options["policy"] = autoscaling_policy(options["policy"], f"{_FIELD}['policy']")
    return AutoscalingConfig(**options)


def autoscaling_policy(given: object, field: str) -> AutoscalingPolicy:
    """Turn what a user gives as a policy into the struct.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    if given is None or isinstance(given, dict | AutoscalingPolicy):
        return struct_of(AutoscalingPolicy, field, given)
    # The function itself, or its path, is what everybody means.
    return AutoscalingPolicy(policy_function=given)
