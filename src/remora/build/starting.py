"""From what a user passes to `start` to an instance that comes up: checked where it is passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from remora.config import (
    AdminOptions,
    HTTPOptions,
    ProxyLocation,
    engine_options,
    gRPCOptions,
    nearest,
    with_absolute_paths,
)
from remora.config import admin_options as _admin_options
from remora.config import grpc_options as _grpc_options
from remora.config import http_options as _http_options
from remora.config import proxy_location as _location
from remora.current import begin
from remora.engine.launch import LaunchSetup
from remora.errors import ConfigError, NotSupportedYetError
from remora.home import Home
from remora.instance import Instance
from remora.options.logging import LoggingConfig, with_absolute_folder
from remora.options.logging import logging_config as _logging_config
from remora.options.node import NodeOptions
from remora.options.resources import AS_FOUND, MachineOptions
from remora.options.tracing import TracingConfig
from remora.options.tracing import tracing_config as _tracing_config
from remora.wire.grpc import GrpcSetup

_LEGACY_START = ("http_host", "http_port", "http_middlewares", "detached", "dedicated_cpu")
_START = (
    "proxy_location",
    "http_options",
    "grpc_options",
    "logging_config",
    "tracing_config",
    "controller_options",
    "num_cpus",
    "num_gpus",
    "memory",
    "resources",
    "labels",
    "engine",
    "address",
    "admin_options",
    "node_options",
)


def begin_start(
    home: Home | None = None,
    http_options: HTTPOptions | dict[str, Any] | None = None,
    proxy_location: ProxyLocation | str | None = None,
    grpc_options: gRPCOptions | dict[str, Any] | None = None,
    machine: MachineOptions = AS_FOUND,
    engine: str | None = None,
    address: str | None = None,
    admin_options: AdminOptions | dict[str, Any] | None = None,
    node_options: NodeOptions | dict[str, Any] | None = None,
    logging_config: dict[str, Any] | LoggingConfig | None = None,
    tracing_config: dict[str, Any] | TracingConfig | None = None,
    **others: Any,
) -> Instance:
    """Start an instance as `start` does, but leave the waiting to `Instance.wait_ready`.

    Args:
        home: state folder; None: the usual one.
        http_options: of the front door.
        proxy_location: see `start`.
        grpc_options: see `start`.
        machine: what this machine is said to have.
        engine: see `start`.
        address: see `start`.
        admin_options: see `start`.
        node_options: see `start`.
        logging_config: see `start`.
        tracing_config: see `start`.
        others: as `start`.

    Raises:
        Exception: as `start`.
    """
    _check_others(others)
    http = _checked_http(http_options)
    disabled = _location(proxy_location) is ProxyLocation.Disabled
    if disabled:
        http = msgspec.structs.replace(http, host=None)
    asked = http_options is not None or proxy_location is not None
    grpc = _checked_grpc(grpc_options, http.host)
    if grpc is not None and disabled:
        raise ConfigError(
            "proxy_location", proxy_location, "grpc_options ask for gRPC, which proxies serve"
        )
    chosen = None
    if any(each is not None for each in (engine, address, proxy_location, node_options)):
        chosen = engine_options(engine, address, proxy_location, node_options)
    setup = LaunchSetup(
        http=http if asked else None,
        grpc=grpc,
        machine=machine,
        engine=chosen,
        admin=_admin_options(admin_options) if admin_options is not None else None,
        logging=logging_of(logging_config),
        tracing=_checked_tracing(tracing_config),
    )
    return begin(setup, home)


def _check_others(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _LEGACY_START:
            raise ValueError(f"{name} is not an option any more; use http_options instead")
        if name not in _START:
            raise TypeError(
                f"start() got an unexpected keyword argument {name!r}.{nearest(name, _START)}"
            )
        refuse_if_set(name, value)


# What is wrong with files and libraries is told here, to whoever named them or asked for them.


def _checked_http(given: HTTPOptions | dict[str, Any] | None) -> HTTPOptions:
    http = with_absolute_paths(_http_options(given))
    if http.ssl_certfile is not None:
        from remora.transport.tls import server_context

        server_context(http)
    return http


def _checked_grpc(
    given: gRPCOptions | dict[str, Any] | None, http_host: str | None
) -> GrpcSetup | None:
    if given is None:
        return None
    from remora.build.grpc_services import grpc_setup

    return grpc_setup(_grpc_options(given), http_host)


def _checked_tracing(given: dict[str, Any] | TracingConfig | None) -> TracingConfig | None:
    tracing = _tracing_config(given)
    if tracing is not None and tracing.enabled:
        from remora.observe.tracing import require_library

        require_library()
    return tracing


def logging_of(given: dict[str, Any] | LoggingConfig | None) -> LoggingConfig | None:
    """Turn what a user passes as `logging_config` into the struct, for processes in other folders.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    return with_absolute_folder(_logging_config(given))


def refuse_if_set(field: str, value: object, advice: str = "leave it out") -> None:
    """Refuse an option that has no machinery yet.

    Raises:
        NotSupportedYetError: it is set.
    """
    if value:
        raise NotSupportedYetError(field, value, advice)
