"""How requests find their replica, and how they are refused where there is no room."""

from __future__ import annotations

from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import is_import_path, require_json, require_number

#: Power of two choices.
DEFAULT_ROUTER_CLASS = "remora.request_router:PowerOfTwoChoicesRequestRouter"


class BackpressureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a request is refused when the queue of a deployment is full."""

    #: 503 or 429.
    status_code: int = 503
    #: Seconds in the `Retry-After` header, >= 0; None: worked out from how fast the queue drains.
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.status_code not in (429, 503) or isinstance(self.status_code, bool):
            raise ConfigError("backpressure_config.status_code", self.status_code, "429 or 503")
        name = "backpressure_config.retry_after_s"
        require_number(name, self.retry_after_s, low=0, or_none=True)


class RequestRouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests find their replica."""

    #: A class made from `remora.request_router.RequestRouter`, or `module:Class`.
    request_router_class: Any = DEFAULT_ROUTER_CLASS
    #: Handed to `initialize_state` of that class; a dict of JSON values.
    request_router_kwargs: dict[str, Any] = {}
    #: Seconds between two calls of `record_routing_stats`, > 0.
    request_routing_stats_period_s: float = 10.0
    #: Seconds that one of these calls may take, > 0.
    request_routing_stats_timeout_s: float = 30.0
    #: Seconds until a class is asked again about a request that it found no replica for, >= 0.
    initial_backoff_s: float = 0.025
    #: Factor from one of these waits to the next, >= 1.
    backoff_multiplier: float = 2.0
    #: The longest of these waits, >= `initial_backoff_s`.
    max_backoff_s: float = 0.5

    def __post_init__(self) -> None:
        field = "request_router_config"
        chosen = self.request_router_class
        if not isinstance(chosen, type) and not (
            isinstance(chosen, str) and is_import_path(chosen)
        ):
            raise ConfigError(
                f"{field}.request_router_class", chosen, "must be a class, or 'module:Class'"
            )
        if not isinstance(self.request_router_kwargs, dict):
            raise ConfigError(
                f"{field}.request_router_kwargs", self.request_router_kwargs, "must be a dict"
            )
        require_json(f"{field}.request_router_kwargs", self.request_router_kwargs)
        for name in ("request_routing_stats_period_s", "request_routing_stats_timeout_s"):
            require_number(f"{field}.{name}", getattr(self, name), above=0)
        require_number(f"{field}.initial_backoff_s", self.initial_backoff_s, low=0)
        require_number(f"{field}.backoff_multiplier", self.backoff_multiplier, low=1)
        require_number(f"{field}.max_backoff_s", self.max_backoff_s, low=self.initial_backoff_s)


class PolicySetup(msgspec.Struct, array_like=True, frozen=True):
    """What a router needs to make its policy. Derived from `RequestRouterConfig`, no option."""

    #: Name of a policy in `core/routing`, or `custom`.
    name: str = "power_of_two"
    kwargs: dict[str, Any] = {}
    #: Of a custom one: its class, pickled; opened only by routers.
    code: bytes = b""
    initial_backoff_s: float = 0.025
    backoff_multiplier: float = 2.0
    max_backoff_s: float = 0.5
