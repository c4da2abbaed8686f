"""What `GET /api/serve/applications/` answers: the shape that Ray Serve's tools read.

Rules: pure. Fields that say something of actors of Ray are there and null. What is never known is
left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from remora.observe.log_files import replica_log_name
from remora.rest.topology import topology
from remora.types import NodeID, ReplicaID
from remora.wire.control import (
    ApplicationStatus,
    DeadReplica,
    DeploymentStatus,
    InstanceStatus,
    ReplicaStatus,
)
from remora.wire.health import ControllerHealth
from remora.wire.scaling import ScalingDetail

#: Of a process here and of an actor of Ray's.
_ACTOR = ("actor_id", "actor_name", "worker_id", "node_ip", "node_instance_id")


def instance_details(
    status: InstanceStatus,
    configs: Mapping[str, bytes],
    scaling: Iterable[ScalingDetail],
    options: Mapping[str, Any],
    health: ControllerHealth,
    *,
    source: str | None = None,
) -> dict[str, Any]:
    """Describe an instance.

    Pure.

    Args:
        status: as the controller tells it.
        configs: what was declared of each application, as JSON.
        scaling: how deployments are scaled.
        options: those of the front doors (`http`, `grpc`, `proxy_location`), and `node_id` where all
            processes are on one node.
        health: of the controller.
        source: `declarative` or `imperative` applications only; None: all.
    """
    details = {
        (each.app_name, each.deployment): _scaling(each) for each in scaling if each.by == "demand"
    }
    outside = {each.app_name for each in scaling if each.by == "outside"}
    node = options.get("node_id")
    places = _Places(node, {each.node_id: each.host or None for each in status.nodes})
    applications = {
        name: _application(app, configs.get(name), details, places, is_outside=name in outside)
        for name, app in status.applications.items()
        if source in (None, app.source)
    }
    return {
        "controller_info": _process(
            status.controller_pid, "controller.log", node or status.controller_node_id or None
        ),
        "proxy_location": _location(status, options),
        "http_options": _without_secrets(options.get("http")),
        "grpc_options": options.get("grpc"),
        "proxies": {
            each.name: {
                **_process(
                    each.pid, f"{each.name}.log", each.node_id, places.hosts.get(each.node_id)
                ),
                "status": each.status,
            }
            for each in status.proxies
        },
        "applications": applications,
        "nodes": [msgspec.to_builtins(each) for each in status.nodes],
        "target_capacity": status.target_capacity,
        "target_groups": _target_groups(status),
        "release": status.release,
        "controller_health_metrics": msgspec.to_builtins(health),
        "restores_unset_config_options": True,
    }


def _without_secrets(http: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if http is None:
        return None
    hidden = "…" if http.get("ssl_keyfile_password") else None
    return {**http, "ssl_keyfile_password": hidden}


def _location(status: InstanceStatus, options: Mapping[str, Any]) -> str:
    """On which nodes proxies run, also while the only one of them starts again."""
    http = options.get("http") or {}
    if not status.proxies and http.get("host") is None:
        return "Disabled"
    # On one machine nobody has to say.
    return str(options.get("proxy_location") or "EveryNode")


class _Places(NamedTuple):
    """Where processes are.

    Attributes:
        only: node of all of them; None: each has its own.
        hosts: addresses of nodes by their ids; None: there is one node.
    """

    only: str | None
    hosts: Mapping[NodeID, str | None]


def _process(
    pid: int | None, log: str, node: str | None, host: str | None = None
) -> dict[str, Any]:
    return {
        "node_id": node,
        **dict.fromkeys(_ACTOR),
        "node_ip": host,
        "pid": pid,
        "log_file_path": log,
    }


def _application(
    app: ApplicationStatus,
    config: bytes | None,
    scaling: Mapping[tuple[str, str], dict[str, Any]],
    places: _Places,
    *,
    is_outside: bool,
) -> dict[str, Any]:
    declared = None if config is None else json.loads(config)
    return {
        "name": app.name,
        "route_prefix": app.route_prefix,
        "docs_path": app.docs_path,
        "status": app.status,
        "message": app.message,
        "last_deployed_time_s": app.last_deployed_time_s,
        "deployed_app_config": declared,
        "source": app.source,
        "release": app.release,
        "deployments": {
            name: _deployment(each, scaling.get((app.name, name)), places)
            for name, each in app.deployments.items()
        },
        "external_scaler_enabled": is_outside or _declares_scaler(declared),
        "deployment_topology": msgspec.to_builtins(topology(app)),
    }


def _declares_scaler(declared: Mapping[str, Any] | None) -> bool | None:
    """Whether a config says so; None: a program deployed it, and nobody has set a number yet."""
    return None if declared is None else bool(declared.get("external_scaler_enabled", False))


def _deployment(
    each: DeploymentStatus, scaling: dict[str, Any] | None, places: _Places
) -> dict[str, Any]:
    return {
        "name": each.name,
        "status": each.status,
        "status_trigger": each.status_trigger,
        "message": each.message,
        "target_num_replicas": each.target_num_replicas,
        "required_resources": each.required_resources,
        "replicas": [_replica(replica, places) for replica in each.replicas],
        "recent_dead_replicas": [_dead(replica, places) for replica in each.recent_dead_replicas],
        "autoscaling_detail": scaling,
    }


def _scaling(detail: ScalingDetail) -> dict[str, Any]:
    return {
        "scaling_status": detail.status,
        "min_replicas": detail.low,
        "max_replicas": detail.high,
        "decisions": [
            {
                "timestamp_s": each.at_unix_s,
                "reason": each.reason,
                "prev_num_replicas": each.before,
                "curr_num_replicas": each.after,
                "policy": each.policy,
            }
            for each in detail.decisions
        ],
        "metrics": detail.metrics,
        "metrics_health": detail.metrics_health,
        "errors": list(detail.errors),
    }


def _process_of(replica: ReplicaStatus | DeadReplica, places: _Places) -> dict[str, Any]:
    host = places.hosts.get(NodeID(replica.node_id))
    log = replica_log_name(ReplicaID(replica.replica_id))
    return {
        **_process(replica.pid, log, places.only or replica.node_id or None, host),
        # On Ray it is an actor of that name.
        "actor_name": None if host is None else replica.replica_id,
        "replica_id": replica.replica_id,
    }


def _replica(replica: ReplicaStatus, places: _Places) -> dict[str, Any]:
    return {
        **_process_of(replica, places),
        "state": replica.state,
        "start_time_s": replica.started_at_unix_s,
    }


def _dead(replica: DeadReplica, places: _Places) -> dict[str, Any]:
    return {
        **_process_of(replica, places),
        "state": "STOPPED",
        "start_time_s": replica.started_at_unix_s,
        "end_time_s": replica.ended_at_unix_s,
        "reason": replica.reason,
    }


def _target_groups(status: InstanceStatus) -> list[dict[str, Any]]:
    """Where a load balancer reaches the applications: all of them through the front door."""
    doors = [("HTTP", status.http_url.partition("://")[2]), ("gRPC", status.grpc_address)]
    groups = []
    for protocol, address in doors:
        host, _, port = address.partition("/")[0].rpartition(":")
        if port.isdecimal():
            target = {"ip": host.strip("[]"), "port": int(port), "instance_id": "", "name": ""}
            groups.append(
                {
                    "targets": [target],
                    "route_prefix": "/",
                    "protocol": protocol,
                    # Every application is behind this door.
                    "app_name": "",
                    "ingress_request_router_targets": [],
                    "ingress_deployment_name": "",
                }
            )
    return groups
