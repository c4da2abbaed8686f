"""Every user option, once.

Frozen structs grouped by who reads them. Python keywords, files, flags, the state file and
the wire derive from these definitions. Defaults are those of Ray Serve unless the field says
why not. Checks live in `__post_init__`, so no value that breaks a rule ever exists.

What a user writes in a decorator is turned into these structs by `options/deployment.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from remora.autoscaling_context import AutoscalingContext as AutoscalingContext  # noqa: PLC0414 - found here by users of this module
from remora.errors import ConfigError
from remora.options.autoscaling import AutoscalingConfig as AutoscalingConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.autoscaling import AutoscalingPolicy as AutoscalingPolicy  # noqa: PLC0414 - found here by users of this module
from remora.options.autoscaling import ScalingPolicySetup as ScalingPolicySetup  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import Named, is_import_path
from remora.options.checks import check_keys as check_keys  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import check_keywords as check_keywords  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import nearest as nearest  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import require_json as require_json  # noqa: PLC0414 - found here by users of this module
from remora.options.checks import require_number as require_number  # noqa: PLC0414 - found here by users of this module
from remora.options.logging import LoggingConfig
from remora.options.node import PLAIN, NodeOptions, node_options
from remora.options.resources import DeploymentActorConfig as DeploymentActorConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.resources import GangSchedulingConfig as GangSchedulingConfig  # noqa: PLC0414 - found here by users of this module
from remora.options.resources import RuntimeEnv as RuntimeEnv  # noqa: PLC0414 - found here by users of this module
from remora.options.warmup import WarmupRequest as WarmupRequest  # noqa: PLC0414 - found here by users of this module


class _Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


#: Stands for an option that the user did not set. None is a value of its own.
UNSET: Final = _Unset.UNSET


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
        if self.retry_after_s is not None:
            require_number("backpressure_config.retry_after_s", self.retry_after_s, low=0)


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
        if self.required_ready_replicas is not None:
            number = self.required_ready_replicas
            require_number("required_ready_replicas", number, low=1, whole=True)
        require_number("max_surge_percent", self.max_surge_percent, low=0, high=100, whole=True)
        for name, amount in self.resources.items():
            require_number(f"resources[{name!r}]", amount, low=0)


class AdminOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the REST API listens, beside the Unix socket in the state folder."""

    #: Address; None: the Unix socket only. One that others reach needs the instance's token.
    host: str | None = "127.0.0.1"
    #: Port, 0..65535; 0: the kernel picks a free one. The default is left to whoever has it.
    port: int = 8265

    def __post_init__(self) -> None:
        host: object = self.host  # whatever the caller really passed
        if host is not None and not (isinstance(host, str) and host):
            raise ConfigError("admin_options['host']", host, "an address, or None")
        require_number("admin_options['port']", self.port, low=0, high=65535, whole=True)


ADMIN = AdminOptions()


def admin_options(given: AdminOptions | dict[str, Any] | None) -> AdminOptions:
    """Turn what a user passes as `admin_options` into the struct.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    if given is None:
        return ADMIN
    if isinstance(given, AdminOptions):
        return given
    if not isinstance(given, dict):
        raise TypeError(f"admin_options must be a dict or AdminOptions, not {type(given).__name__}")
    check_keys("admin_options", given, AdminOptions.__struct_fields__)
    return AdminOptions(**given)


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs the processes of an instance."""

    #: `local`: this machine, by Remora itself; `ray`: a Ray cluster.
    engine: str = "local"
    #: Of the Ray cluster: `host:port`; `auto`: the one of this machine; `local`: a new one that
    #: ends with the instance; empty: the one of this machine if there is one, else a new one.
    address: str = ""
    #: On which nodes of the cluster proxies run.
    proxy_location: str = "EveryNode"
    #: Of connections between nodes.
    node: NodeOptions = PLAIN

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray"):
            raise ConfigError("engine", self.engine, "must be 'local' or 'ray'")
        if self.address and self.engine != "ray":
            raise ConfigError("address", self.address, "is of a Ray cluster and needs engine='ray'")
        if self.node and self.engine != "ray":
            raise ConfigError(
                "node_options", self.node, "is for several nodes and needs engine='ray'"
            )


LOCAL_ENGINE = EngineOptions()


def engine_options(
    engine: str | None = None,
    address: str | None = None,
    location: str | ProxyLocation | None = None,
    node: NodeOptions | dict[str, Any] | None = None,
) -> EngineOptions:
    """Make the options from what a user says; the environment variable `REMORA_ADDRESS` may add.

    Args:
        engine: `local` or `ray`; None: Ray if there is an address of a cluster.
        address: see `EngineOptions`; None: as the environment says.
        location: of proxies; None: every node.
        node: of connections between nodes; None: plain TCP.

    Raises:
        ConfigError: no such engine, or what is of a cluster without Ray.
    """
    if address is None and engine != "local":
        address = os.environ.get("REMORA_ADDRESS", "")
    chosen = engine or ("ray" if address else "local")
    where = proxy_location(location)
    return EngineOptions(
        engine=chosen,
        address=address or "",
        proxy_location=where.value,
        node=node_options(node).absolute(),
    )


def with_resources(config: DeploymentConfig, defaults: Mapping[str, float]) -> DeploymentConfig:
    """Fill in what a replica takes whose deployment does not say. Pure."""
    if config.placement_group_bundles or all(name in config.resources for name in defaults):
        return config
    return msgspec.structs.replace(config, resources={**defaults, **config.resources})


class ProxyLocation(StrEnum):
    """On which nodes a proxy runs. On one machine the last two mean the same."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


_SSL_OPTIONS = ("ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs")


class HTTPOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=Named
):
    """The HTTP front door."""

    #: Address to listen on; None: no HTTP.
    host: str | None = "127.0.0.1"
    #: Port, 0..65535; 0: the kernel picks a free one.
    port: int = 8000
    root_path: str = ""
    #: URL that users reach the front door by, for what is printed; empty: its own.
    root_url: str = ""
    #: Seconds a request may take from end to end; None: no limit.
    request_timeout_s: float | None = None
    #: Seconds that an idle connection is kept.
    keep_alive_timeout_s: float = 90.0
    #: Proxy processes on the one listening socket, >= 1; None: one for every four cores, four at
    #: most.
    num_proxies: int | None = None
    #: Bytes of request head (request line and headers) that are accepted.
    max_head_bytes: int = 64 * 1024
    #: Bytes of request body that are accepted; None: no limit (bodies are streamed).
    max_body_bytes: int | None = None
    #: PEM files of the server's key and certificate (chain); both or none. None: plain HTTP.
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    #: Of an encrypted key.
    ssl_keyfile_password: str | None = None
    #: PEM file of the authorities that clients' certificates must come from; None: clients need
    #: no certificate.
    ssl_ca_certs: str | None = None
    #: Bytes of a WebSocket's message from a client, unpacked; a larger one ends it with 1009.
    websocket_max_message_bytes: int = 16 * 1024 * 1024
    #: Seconds between pings to the client of a WebSocket; None: no pings.
    websocket_ping_interval_s: float | None = 20.0
    #: Seconds in which something must come after a ping; None: none that is silent is cut off.
    websocket_ping_timeout_s: float | None = 20.0

    def __post_init__(self) -> None:
        host: object = self.host  # whatever the caller really passed
        if host is not None and not (isinstance(host, str) and host):
            raise ConfigError("host", self.host, "an address, or None for no HTTP")
        for name in ("root_path", "root_url"):
            text: object = getattr(self, name)
            if not isinstance(text, str):
                raise ConfigError(name, text, "must be text")
        if self.root_url and not self.root_url.startswith(("http://", "https://")):
            raise ConfigError("root_url", self.root_url, "begins with http:// or https://")
        require_number("port", self.port, low=0, high=65535, whole=True)
        if self.request_timeout_s is not None:
            require_number("request_timeout_s", self.request_timeout_s, above=0)
        require_number("keep_alive_timeout_s", self.keep_alive_timeout_s, low=0)
        if self.num_proxies is not None:
            require_number("num_proxies", self.num_proxies, low=1, whole=True)
        require_number("max_head_bytes", self.max_head_bytes, low=1, whole=True)
        if self.max_body_bytes is not None:
            require_number("max_body_bytes", self.max_body_bytes, low=0, whole=True)
        for name in ("websocket_ping_interval_s", "websocket_ping_timeout_s"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), above=0)
        name = "websocket_max_message_bytes"
        require_number(name, self.websocket_max_message_bytes, low=1, whole=True)
        self._check_tls()

    def _check_tls(self) -> None:
        for name in _SSL_OPTIONS:
            value: object = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(name, value, "text, or None")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            missing = "ssl_keyfile" if self.ssl_keyfile is None else "ssl_certfile"
            raise ConfigError(missing, None, "TLS needs both ssl_keyfile and ssl_certfile")
        for name in ("ssl_keyfile_password", "ssl_ca_certs"):
            if getattr(self, name) is not None and self.ssl_certfile is None:
                shown = "…" if name.endswith("password") else self.ssl_ca_certs
                raise ConfigError(name, shown, "needs ssl_keyfile and ssl_certfile beside it")


def http_options(given: HTTPOptions | dict[str, Any] | None) -> HTTPOptions:
    """Turn what a user passes as `http_options` into the struct.

    Names that Ray Serve knows and Remora does not need are accepted with their neutral value.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    if given is None:
        return HTTPOptions()
    if isinstance(given, HTTPOptions):
        return given
    if not isinstance(given, dict):
        raise TypeError(f"http_options must be a dict or HTTPOptions, not {type(given).__name__}")
    options = dict(given)
    if options.pop("middlewares", None):
        raise ConfigError(
            "http_options['middlewares']",
            given["middlewares"],
            "the front door takes no middleware; add it to your FastAPI or Starlette app",
        )
    if options.pop("num_cpus", 0):
        raise ConfigError("http_options['num_cpus']", given["num_cpus"], "must be 0")
    if options.pop("location", None) is not None:
        warnings.warn(
            "http_options['location'] is deprecated; pass proxy_location to start() instead",
            DeprecationWarning,
            stacklevel=3,
        )
    check_keys("http_options", options, HTTPOptions.__struct_fields__)
    return HTTPOptions(**options)


def with_absolute_paths(options: HTTPOptions) -> HTTPOptions:
    """The same for processes that work in another folder."""
    changed: dict[str, Any] = {}
    for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
        path = getattr(options, name)
        if path is not None:
            changed[name] = str(Path(path).expanduser().absolute())
    return msgspec.structs.replace(options, **changed) if changed else options


class gRPCOptions(  # noqa: N801 - the name that Ray Serve's users know
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=Named
):
    """The gRPC front door. It is opened when any option differs from its default."""

    #: Port, 0..65535; 0: the kernel picks a free one.
    port: int = 9000
    #: Functions that generated code calls `add_…Servicer_to_server`, or their import paths.
    grpc_servicer_functions: list[Any] = []
    #: Seconds a request may take from end to end; None: no limit but the client's.
    request_timeout_s: float | None = None
    #: Tell clients which services there are.
    enable_reflection: bool = True
    #: Address to listen on; None: that of `http_options`.
    host: str | None = None
    #: Bytes of one message in either direction that are accepted.
    max_message_bytes: int = 2**31 - 1
    #: Files in PEM format. With key and certificate the port speaks TLS only.
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    #: Clients must show a certificate that one of these authorities has signed.
    ssl_ca_certs: str | None = None

    def __post_init__(self) -> None:
        def field(name: str) -> str:
            return f"grpc_options[{name!r}]"

        require_number(field("port"), self.port, low=0, high=65535, whole=True)
        if self.request_timeout_s is not None:
            require_number(field("request_timeout_s"), self.request_timeout_s, above=0)
        require_number(
            field("max_message_bytes"), self.max_message_bytes, low=1, high=2**31 - 1, whole=True
        )
        if not isinstance(self.enable_reflection, bool):
            raise ConfigError(field("enable_reflection"), self.enable_reflection, "True or False")
        functions: object = self.grpc_servicer_functions  # whatever the caller really passed
        if not isinstance(functions, list) or not all(
            callable(each) or (isinstance(each, str) and each) for each in functions
        ):
            raise ConfigError(
                field("grpc_servicer_functions"), functions, "a list of functions or import paths"
            )
        for name in ("host", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
            value: object = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(field(name), value, "must be a str that is not empty, or None")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError(
                field("ssl_keyfile"), self.ssl_keyfile, "needs ssl_certfile beside it, and it this"
            )
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ConfigError(
                field("ssl_ca_certs"), self.ssl_ca_certs, "needs ssl_certfile and ssl_keyfile"
            )


def grpc_options(given: gRPCOptions | dict[str, Any] | None) -> gRPCOptions:
    """Turn what a user passes as `grpc_options` into the struct.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    if given is None:
        return gRPCOptions()
    if isinstance(given, gRPCOptions):
        return given
    if not isinstance(given, dict):
        raise TypeError(f"grpc_options must be a dict or gRPCOptions, not {type(given).__name__}")
    check_keys("grpc_options", given, gRPCOptions.__struct_fields__)
    return gRPCOptions(**given)


def proxy_location(given: ProxyLocation | str | None) -> ProxyLocation:
    """Turn what a user passes as `proxy_location` into the enum.

    Raises:
        TypeError: neither text nor a `ProxyLocation`.
        ConfigError: no such location.
    """
    if given is None:
        return ProxyLocation.EveryNode
    if isinstance(given, ProxyLocation):
        return given
    if not isinstance(given, str):
        raise TypeError(
            f"proxy_location must be a str or ProxyLocation, not {type(given).__name__}"
        )
    if given == "NoServer":
        return ProxyLocation.Disabled
    names = [location.value for location in ProxyLocation]
    if given not in names:
        raise ConfigError(
            "proxy_location", given, f"one of {', '.join(names)}.{nearest(given, names)}"
        )
    return ProxyLocation(given)
