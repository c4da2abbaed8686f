"""What a user writes in `@deployment(...)`, checked and turned into `DeploymentConfig`.

`DeploymentOptions` is the one list of keywords; the decorator, `options()` and the messages
about unknown names derive from it. An option whose machinery is not here yet is checked like
any other and then refused: nothing that a user sets is ever ignored.

Rules: pure functions. The exception types are those that Ray Serve users know: `TypeError`
for an unknown keyword or a wrong type of name, `ValueError` (`ConfigError`) for the rest.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, TypedDict

from remora.config import (
    BackpressureConfig,
    DeploymentActorConfig,
    DeploymentConfig,
    RequestRouterConfig,
    check_keywords,
    require_json,
)
from remora.errors import ConfigError
from remora.options.actor import (
    PLACEMENT,
    actor_fields,
    check_placement,
    placement_fields,
    preload_names,
)
from remora.options.autoscaling import DEPRECATED, AutoscalingConfig, autoscaling_config
from remora.options.checks import require_flag, struct_of
from remora.options.logging import LoggingConfig, logging_config, with_absolute_folder
from remora.options.warmup import warmup_requests


class DeploymentOptions(TypedDict, total=False):
    """Keywords of `deployment` and `Deployment.options`; see `DeploymentConfig` for each."""

    name: str
    version: str
    num_replicas: int | str | None
    ray_actor_options: dict[str, Any] | None
    placement_group_bundles: list[dict[str, float]] | None
    placement_group_strategy: str | None
    placement_group_bundle_label_selector: list[dict[str, str]] | None
    max_replicas_per_node: int | None
    user_config: Any
    max_ongoing_requests: int
    max_queued_requests: int
    backpressure_config: dict[str, Any] | BackpressureConfig | None
    autoscaling_config: dict[str, Any] | AutoscalingConfig | None
    graceful_shutdown_wait_loop_s: float
    graceful_shutdown_timeout_s: float
    health_check_period_s: float
    health_check_timeout_s: float
    logging_config: dict[str, Any] | LoggingConfig | None
    request_router_config: dict[str, Any] | RequestRouterConfig | None
    max_constructor_retry_count: int
    gang_scheduling_config: dict[str, Any] | None
    deployment_actors: list[Any] | None
    rolling_update_percentage: float
    max_surge_percent: int
    rollback: str
    required_ready_replicas: int | None
    warmup_requests: list[Any] | None
    idempotent: bool
    preload: list[Any]


KEYWORDS = tuple(DeploymentOptions.__annotations__)

#: Options of `DeploymentConfig` that are taken over as they are.
_PLAIN = frozenset(KEYWORDS) & frozenset(DeploymentConfig.__struct_fields__)
#: None stands for their default.
_MAY_BE_NONE = (
    "num_replicas",
    "user_config",
    "backpressure_config",
    "request_router_config",
    "preload",
    "required_ready_replicas",
    "warmup_requests",
    "deployment_actors",
    "logging_config",
)
_WHOLE = (
    "num_replicas",
    "max_ongoing_requests",
    "max_queued_requests",
    "max_constructor_retry_count",
    "max_surge_percent",
    "required_ready_replicas",
)
#: Options of old versions of Ray Serve, and what to write instead.
_MOVED = {
    "max_concurrent_queries": "it is called max_ongoing_requests now.",
    "route_prefix": "it belongs to the application. Write run(app, route_prefix=...).",
}


def check_names(given: Mapping[str, object], where: str) -> None:
    """Refuse keywords that do not exist.

    Raises:
        TypeError: as Python itself would, plus the name that was probably meant, or where an
            option of old versions has gone.
        ValueError: `version`, which was removed.
    """
    for keyword in given:
        if keyword in _MOVED:
            raise TypeError(
                f"{where} got an unexpected keyword argument {keyword!r}: {_MOVED[keyword]}"
            )
    check_keywords(where, given, KEYWORDS)
    if "version" in given:
        raise ValueError(
            "version is not an option any more: every run gets a version of its own. Leave it out."
        )


def check_deployment_name(name: object) -> str:
    """Return `name` if a deployment may be called that.

    Raises:
        TypeError: not text.
        ConfigError: empty, or contains `#`.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__} ({name!r})")
    if not name or "#" in name:
        raise ConfigError("name", name, "must not be empty and must not contain '#'")
    return name


def deployment_config(given: DeploymentOptions) -> DeploymentConfig:
    """Make the config that these options stand for; what is missing has its default.

    Pure. Guarantees: every option in `given` is either in the result or refused.

    Raises:
        TypeError: a wrong type where Ray Serve says so.
        ConfigError: a value that cannot be right (a `ValueError`).
        NotSupportedYetError: a right value that nothing acts on yet.
    """
    options: dict[str, Any] = dict(given)
    options.pop("name", None)
    _check_together(options)
    fields = actor_fields(options.pop("ray_actor_options", None)) | placement_fields(options)
    if (scaling := _autoscaling(options)) is not None:
        fields["autoscaling_config"] = scaling
    for keyword, value in options.items():
        if keyword in PLACEMENT or (value is None and keyword in _MAY_BE_NONE):
            continue
        fields[keyword] = _converted(keyword, value)
    check_placement(given, fields)
    return DeploymentConfig(**fields)


def _converted(keyword: str, value: Any) -> Any:
    assert keyword in _PLAIN, keyword
    if keyword == "num_replicas" and isinstance(value, str):
        raise ConfigError(keyword, value, "must be a whole number >= 1 or 'auto'")
    if keyword == "user_config":
        require_json(keyword, value)
    if keyword == "warmup_requests":
        return warmup_requests(value)
    if keyword == "deployment_actors":
        return _actors(value)
    if keyword == "preload":
        return preload_names(value)
    if keyword == "idempotent":
        require_flag(keyword, value)
    if keyword == "backpressure_config":
        return struct_of(BackpressureConfig, keyword, value, error=ConfigError)
    if keyword == "request_router_config":
        return struct_of(RequestRouterConfig, keyword, value, error=ConfigError)
    if keyword == "logging_config":
        return with_absolute_folder(logging_config(value))
    if keyword in _WHOLE and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _autoscaling(options: dict[str, Any]) -> AutoscalingConfig | None:
    """Take what is said about autoscaling out of the options; None: nothing is."""
    given = options.pop("autoscaling_config", None)
    auto = options.get("num_replicas") == "auto"
    if auto:
        del options["num_replicas"]
    if given is None and not auto:
        return None
    for name in given if isinstance(given, dict) else ():
        if name in DEPRECATED:
            warnings.warn(
                f"autoscaling_config[{name!r}] is deprecated; write {DEPRECATED[name]}",
                DeprecationWarning,
                stacklevel=5,
            )
    return autoscaling_config(given, auto=auto)


def put_over(before: DeploymentOptions, changes: DeploymentOptions) -> DeploymentOptions:
    """Put options over those of before; how many replicas there are is as was said last.

    Pure. A number ends scaling by demand, and scaling by demand ends a number: code says `num_replicas=1`
    where a config says how it is scaled. Both in one place are a contradiction, told by `deployment_config`.
    """
    merged = before.copy()
    merged.update(changes)
    if changes.get("autoscaling_config") is not None and "num_replicas" not in changes:
        if merged.get("num_replicas") != "auto":
            merged.pop("num_replicas", None)
    elif changes.get("num_replicas") not in (None, "auto") and "autoscaling_config" not in changes:
        merged.pop("autoscaling_config", None)
    return merged


def _check_together(options: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other."""
    if options.get("autoscaling_config") is not None:
        replicas = options.get("num_replicas")
        if replicas not in (None, "auto"):
            raise ConfigError(
                "num_replicas", replicas, "must be 'auto' or left out beside autoscaling_config"
            )


def _actors(given: Any) -> tuple[DeploymentActorConfig, ...]:
    keyword = "deployment_actors"
    if not isinstance(given, (list, tuple)):
        raise ConfigError(keyword, given, "must be a list")
    found = [struct_of(DeploymentActorConfig, keyword, each, error=ConfigError) for each in given]
    names = [each.name for each in found]
    if len(set(names)) != len(names):
        raise ConfigError(keyword, names, "the names must differ")
    return tuple(found)


def check_code_options(func_or_class: object, given: DeploymentOptions) -> None:
    """Refuse options that do not fit what is deployed.

    Raises:
        ConfigError: `user_config` on a function, which has no `reconfigure`.
    """
    if given.get("user_config") is not None and not inspect.isclass(func_or_class):
        raise ConfigError(
            "user_config",
            given["user_config"],
            "works with a class that has a reconfigure method; a function has none",
        )
