"""The functions that users call: run, start, status, delete, shutdown, and handle look-up.

A script that calls `run` joins the instance that runs in its state folder (`REMORA_HOME`), or
launches one that ends with the script. All functions may be called with or without a running
event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from remora.build.deploying import announce, delete_all, deploy_all
from remora.build.graph import build, check_route_prefix, check_target
from remora.build.starting import begin_start, logging_of, refuse_if_set
from remora.calls.lookup import (
    forget_handles,
    forget_handles_of,
    get_app_handle,
    get_deployment_handle,
)
from remora.config import AdminOptions, HTTPOptions, ProxyLocation, gRPCOptions
from remora.context import ReplicaContext, get_replica_context
from remora.current import (
    begin,
    begin_local_testing,
    current_instance,
    end_current,
    note_change,
    require_instance,
    wait_for,
    wait_ready,
)
from remora.deployment import Application
from remora.errors import ConfigError, RemoraError
from remora.handle import DeploymentHandle
from remora.instance import Instance
from remora.options.logging import LoggingConfig
from remora.options.node import NodeOptions
from remora.options.resources import machine_options
from remora.options.tracing import TracingConfig
from remora.schema import ServeStatus, serve_status
from remora.types import DEFAULT_APP_NAME

__all__ = [
    "ReplicaContext",
    "RunTarget",
    "begin_start",
    "delete",
    "get_app_handle",
    "get_deployment_handle",
    "get_replica_context",
    "run",
    "run_many",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
]

_log = logging.getLogger("remora")

_D = TypeVar("_D")


@dataclass(frozen=True)
class RunTarget:
    """One application for `run_many`.

    Attributes:
        target: the result of `.bind()`.
        name: of the application.
        route_prefix: where it is reachable over HTTP; None: nowhere.
        logging_config: how replicas log whose deployment does not say.
        external_scaler_enabled: numbers of replicas are set from outside, by nobody else.
        autoscaling_policy: decides for all its deployments that are scaled by demand.
    """

    target: Application
    name: str = DEFAULT_APP_NAME
    route_prefix: str | None = "/"
    logging_config: dict[str, Any] | LoggingConfig | None = None
    external_scaler_enabled: bool = False
    autoscaling_policy: Any = None


def run(
    target: Application[_D],
    blocking: bool = False,
    name: str = DEFAULT_APP_NAME,
    route_prefix: str | None = "/",
    logging_config: dict[str, Any] | LoggingConfig | None = None,
    _local_testing_mode: bool = False,
    external_scaler_enabled: bool = False,
    controller_options: dict[str, Any] | None = None,
    autoscaling_policy: Any = None,
) -> DeploymentHandle[_D]:
    """Deploy an application, wait until it runs, and return a handle to its ingress.

    Args:
        target: the result of `.bind()`.
        blocking: stay until Ctrl-C, then end what this call started.
        name: of the application; one of the same name is replaced.
        route_prefix: where it is reachable over HTTP; None: nowhere.
        logging_config: how replicas log whose deployment does not say.
        _local_testing_mode: run everything in this process, without ports and processes;
            `remora.testing.asgi_app` is the front door then.
        external_scaler_enabled: numbers of replicas are set from outside, and survive deploys.
        controller_options: not supported yet.
        autoscaling_policy: decides for all deployments of the application that are scaled by
            demand: an `AutoscalingPolicy`, or its function.

    Raises:
        TypeError: `target` is no application.
        ConfigError: a bad route prefix, or an option that is not supported yet.
        DeployError: it cannot be brought up (a `RuntimeError`); holds the user's traceback.
        InstanceError: no instance could be started.
    """
    one = RunTarget(
        target, name, route_prefix, logging_config, external_scaler_enabled, autoscaling_policy
    )
    return run_many(
        [one],
        blocking=blocking,
        _local_testing_mode=_local_testing_mode,
        controller_options=controller_options,
    )[0]


def run_many(
    targets: Sequence[RunTarget],
    blocking: bool = False,
    wait_for_ingress_deployment_creation: bool = True,
    wait_for_applications_running: bool = True,
    _local_testing_mode: bool = False,
    controller_options: dict[str, Any] | None = None,
) -> list[DeploymentHandle[Any]]:
    """Deploy several applications at once; handles come back in the order of the targets.

    Args:
        targets: the applications.
        blocking: stay until Ctrl-C, then end what this call started.
        wait_for_ingress_deployment_creation: accepted; a deploy that was accepted is created.
        wait_for_applications_running: False: return as soon as the deploy is accepted.
        _local_testing_mode: see `run`.
        controller_options: not supported yet.

    Raises:
        ValueError: no targets, or two of the same name.
        Exception: as `run`.
    """
    del wait_for_ingress_deployment_creation  # true as soon as the controller has accepted
    refuse_if_set("controller_options", controller_options)
    _check_targets(targets)
    instance = begin_local_testing() if _local_testing_mode else begin()
    # The instance comes up while the code is pickled.
    specs = [
        build(
            one.target,
            one.name,
            one.route_prefix,
            logging_config=logging_of(one.logging_config),
            external_scaler=one.external_scaler_enabled,
            autoscaling_policy=one.autoscaling_policy,
        )
        for one in targets
    ]
    deploy_all(instance, specs, wait=wait_for_applications_running)
    try:
        announce(specs, wait_ready(instance), aloud=blocking)
        if blocking:
            _stay(instance)
    except KeyboardInterrupt:
        if not blocking:
            raise
        _end_stay(instance, [spec.name for spec in specs])
    return [DeploymentHandle(spec.ingress, spec.name) for spec in specs]


def _check_targets(targets: Sequence[RunTarget]) -> None:
    if not targets:
        raise ValueError("No applications provided.")
    names = [one.name for one in targets]
    for one in targets:
        check_target(one.target)
        if not one.name:
            raise RemoraError("An application needs a name that is not empty.")
        if names.count(one.name) > 1:
            raise ConfigError("name", one.name, "is the name of two applications of this call")
        check_route_prefix(one.route_prefix)
        logging_of(one.logging_config)


def _stay(instance: Instance) -> None:
    """Wait until the instance ends. Ctrl-C comes out of here."""
    wait_for(instance, Instance.wait_gone)
    _log.error("The instance in %s has ended.", instance.home.root)


def _end_stay(instance: Instance, names: list[str]) -> None:
    """End what a blocking call has started: all of it, or in a joined instance its part."""
    if instance.joined:
        delete_all(instance, names)
    else:
        shutdown()


def start(
    proxy_location: ProxyLocation | str | None = None,
    http_options: HTTPOptions | dict[str, Any] | None = None,
    grpc_options: gRPCOptions | dict[str, Any] | None = None,
    logging_config: dict[str, Any] | LoggingConfig | None = None,
    tracing_config: dict[str, Any] | TracingConfig | None = None,
    controller_options: Any = None,
    *,
    num_cpus: float | None = None,
    num_gpus: int | None = None,
    memory: float | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    engine: str | None = None,
    address: str | None = None,
    admin_options: AdminOptions | dict[str, Any] | None = None,
    node_options: NodeOptions | dict[str, Any] | None = None,
    **unknown: Any,
) -> None:
    """Start an instance with these options; on a running one, check that they are its own.

    Args:
        proxy_location: on which nodes proxies run; `Disabled`: no front door.
        http_options: of the front door.
        grpc_options: of the one for gRPC; there is none when all have their defaults.
        logging_config: how its processes log, and its replicas where nothing else is said.
        tracing_config: whether and where its requests are traced, by OpenTelemetry.
        controller_options: not supported yet.
        num_cpus: cores that this machine is to have for replicas; None: those that it has.
        num_gpus: GPUs; None: those that are found.
        memory: bytes; None: what there is.
        resources: custom resources, amounts by name.
        labels: of this machine, for label selectors.
        engine: what runs its processes: `local` (this machine) or `ray`; None: `ray` if there is
            an address.
        address: of the Ray cluster: `host:port`; `auto`: the one of this machine; `local`: a new
            one; None: the environment variable REMORA_ADDRESS, else the one of this machine if
            there is one, else a new one.
        admin_options: where the REST API listens; None: port 8265 of this machine if that is free.
        node_options: of the connections between the nodes of a cluster; None: plain TCP.
        unknown: refused.

    Raises:
        ValueError: an option of old versions.
        TypeError: an unknown option.
        ConfigError: a value that cannot be right, or differs from the running instance's.
        ModuleNotFoundError: a gRPC servicer function, or gRPC's libraries, cannot be imported.
        ModuleNotFoundError: the engine is not installed.
        InstanceError: the instance cannot come up (port taken, folder not writable, no such
            cluster).
    """
    instance = begin_start(
        http_options=http_options,
        proxy_location=proxy_location,
        grpc_options=grpc_options,
        logging_config=logging_config,
        tracing_config=tracing_config,
        controller_options=controller_options,
        machine=machine_options(num_cpus, num_gpus, memory, resources, labels),
        engine=engine,
        address=address,
        admin_options=admin_options,
        node_options=node_options,
        **unknown,
    )
    wait_ready(instance)


def shutdown() -> None:
    """End the instance that this process uses, with all applications. Without one: nothing.

    Ongoing requests finish first, for as long as `graceful_shutdown_timeout_s` allows.
    """
    forget_handles()
    if not end_current():
        _log.info("No instance runs: nothing to shut down.")


async def shutdown_async() -> None:
    """Do what `shutdown` does, without blocking the event loop."""
    await asyncio.to_thread(shutdown)


def delete(name: str, _blocking: bool = True) -> None:
    """Delete an application; one that does not exist is gone already.

    Args:
        name: of the application.
        _blocking: wait up to 60 s until it is gone.

    Raises:
        InstanceError: no instance runs.
        TimeoutError: it is not gone after 60 s; it still will be.
    """
    instance = require_instance()
    forget_handles_of(name)
    if _blocking:
        delete_all(instance, [name])
    else:
        wait_for(instance, lambda i: i.delete([name]))
        note_change()


def status() -> ServeStatus:
    """How proxies and applications are; empty when no instance runs."""
    instance = current_instance()
    if instance is None:
        return ServeStatus()
    return serve_status(wait_for(instance, Instance.status))
