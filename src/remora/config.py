"""Every user option, once.

Frozen structs grouped by who reads them. Python keywords, files, flags, the state file and
the wire derive from these definitions. Defaults are those of Ray Serve unless the field says
why not. Checks live in `__post_init__`, so no value that breaks a rule ever exists.
"""

from __future__ import annotations

import msgspec


class BackpressureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a request is refused when the queue of a deployment is full."""

    #: 503 or 429.
    status_code: int = 503
    #: Seconds in the `Retry-After` header, >= 0; None: no header.
    retry_after_s: float | None = None


class DeploymentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of one deployment that the controller, routers and replicas read."""

    #: Target number of replicas, >= 1.
    num_replicas: int = 1
    #: Requests that one replica works on at a time, >= 1.
    max_ongoing_requests: int = 5
    #: Requests that may wait for a replica in one router; -1: no limit.
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
    #: How a full queue is answered.
    backpressure_config: BackpressureConfig = BackpressureConfig()
    #: Requests may run twice: a replica's death is answered by a retry.
    idempotent: bool = False
    #: Resources reserved for each replica: `CPU`, `GPU`, `memory` (bytes) and custom names.
    resources: dict[str, float] = {}
    #: Environment variables of the replica's process.
    env_vars: dict[str, str] = {}


class HTTPOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP front door."""

    #: Address to listen on; None: no HTTP.
    host: str | None = "127.0.0.1"
    #: Port, 0..65535; 0: the kernel picks a free one.
    port: int = 8000
    root_path: str = ""
    root_url: str = ""
    #: Seconds a request may take from end to end; None: no limit.
    request_timeout_s: float | None = None
    #: Seconds that an idle connection is kept.
    keep_alive_timeout_s: float = 90.0
    #: Proxy processes on the one listening socket.
    num_proxies: int = 1
    #: Bytes of request head (request line and headers) that are accepted.
    max_head_bytes: int = 64 * 1024
    #: Bytes of request body that are accepted; None: no limit (bodies are streamed).
    max_body_bytes: int | None = None
