"""JSON Schemas of what `GET /api/serve/applications/` answers (`details.py` makes it).

Rules: pure. What is described here is there; more may be.
"""

from __future__ import annotations

from typing import Any

import msgspec

from remora.rest.topology import DeploymentTopology
from remora.wire.control import NodeStatus
from remora.wire.health import ControllerHealth

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_OBJECT = {"type": "object"}
_WHERE = "#/components/schemas/"


def details_schemas() -> dict[str, Any]:
    """Describe the answer and its parts, by their names. Pure."""
    _, made = msgspec.json.schema_components(
        (ControllerHealth, DeploymentTopology, NodeStatus), ref_template=f"{_WHERE}{{name}}"
    )
    return {
        **made,
        "InstanceDetails": _all_of(
            controller_info=_OBJECT,
            proxy_location={"enum": ["EveryNode", "HeadOnly", "Disabled"]},
            http_options=_or_null(_OBJECT),
            grpc_options=_or_null(_OBJECT),
            proxies=_OBJECT,
            applications=_each("ApplicationDetails"),
            nodes={"type": "array", "items": _ref("NodeStatus")},
            target_capacity=_or_null({"type": "number"}),
            target_groups={"type": "array", "items": _target_group()},
            release=_WHOLE,
            controller_health_metrics=_ref("ControllerHealth"),
            restores_unset_config_options={"type": "boolean"},
        ),
        "ApplicationDetails": _all_of(
            name=_TEXT,
            route_prefix=_or_null(_TEXT),
            docs_path=_or_null(_TEXT),
            status=_TEXT,
            message=_TEXT,
            last_deployed_time_s={"type": "number"},
            deployed_app_config=_or_null(_OBJECT),
            source={"enum": ["declarative", "imperative"]},
            release=_WHOLE,
            deployments=_each("DeploymentDetails"),
            external_scaler_enabled=_or_null({"type": "boolean"}),
            deployment_topology=_ref("DeploymentTopology"),
        ),
        "DeploymentDetails": _all_of(
            name=_TEXT,
            status=_TEXT,
            status_trigger=_TEXT,
            message=_TEXT,
            target_num_replicas=_WHOLE,
            required_resources={"type": "object", "additionalProperties": {"type": "number"}},
            replicas={"type": "array", "items": _ref("ReplicaDetails")},
            recent_dead_replicas={"type": "array", "items": _ref("DeadReplicaDetails")},
            autoscaling_detail=_or_null(_OBJECT),
        ),
        "ReplicaDetails": _all_of(**_replica()),
        "DeadReplicaDetails": _all_of(**_replica(), end_time_s={"type": "number"}, reason=_TEXT),
    }


def _replica() -> dict[str, dict[str, Any]]:
    return {
        "replica_id": _TEXT,
        "state": _TEXT,
        "pid": _or_null(_WHOLE),
        "start_time_s": _or_null({"type": "number"}),
        "log_file_path": _TEXT,
        "node_id": _or_null(_TEXT),
    }


def _target_group() -> dict[str, Any]:
    return _all_of(
        targets={"type": "array", "items": _OBJECT},
        route_prefix=_TEXT,
        protocol={"enum": ["HTTP", "gRPC"]},
        app_name=_TEXT,
        ingress_request_router_targets={"type": "array", "items": _OBJECT},
        ingress_deployment_name=_TEXT,
    )


def _all_of(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _each(name: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": _ref(name)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"{_WHERE}{name}"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
