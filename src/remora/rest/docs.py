"""What the REST API says of itself: OpenAPI for tools, one page for people.

Rules: pure. The page needs nothing from elsewhere: many machines reach no other network.
"""

from __future__ import annotations

from html import escape
from typing import Any

from remora.config_file.schema import json_schema
from remora.rest.details_schema import details_schemas

_ERROR = {
    "description": "What is wrong, and what to do.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_CONFIG_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Config"}}},
}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str, *statuses: int, kind: str = "application/json", answer: str = "", **more: Any
) -> dict[str, Any]:
    schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    if answer:
        schema = {"$ref": f"#/components/schemas/{answer}"}
    if 413 in statuses:
        # Who takes a body takes it as JSON.
        statuses = (*statuses, 415)
    done = {"description": "Done.", "content": {kind: {"schema": schema}}}
    return {
        "summary": summary,
        "responses": {
            "200": done,
            **{str(status): _ERROR for status in (*statuses, 401, 403, 503)},
        },
        **more,
    }


def _empty(operation: dict[str, Any]) -> dict[str, Any]:
    operation["responses"]["200"] = {"description": "Accepted. The body is empty."}
    return operation


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def openapi(version: str) -> dict[str, Any]:
    """Describe the API. Pure."""
    schema = json_schema()
    # Where the definitions are in this document.
    for each in (schema["properties"]["applications"], *schema["$defs"].values()):
        _relocate(each)
    definitions = schema.pop("$defs")
    schema.pop("$schema")
    return {
        "openapi": "3.1.0",
        "info": {"title": "Remora", "version": version},
        "paths": _paths(),
        "components": {
            "schemas": {
                "Config": schema,
                **definitions,
                **details_schemas(),
                "Error": {
                    "type": "object",
                    "properties": {
                        "error": {"type": "string", "description": "What is wrong."},
                        "hint": {"type": "string", "description": "What to do; may be empty."},
                        "problems": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "All that is wrong with a config, each with its place.",
                        },
                    },
                    "required": ["error", "hint", "problems"],
                    "additionalProperties": False,
                },
            }
        },
    }


def _paths() -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    return {
        "/api/serve/applications/": {
            "get": _operation(
                "What runs: applications, deployments, replicas, proxies.",
                400,
                answer="InstanceDetails",
                parameters=[
                    {
                        "name": "api_type",
                        "in": "query",
                        "schema": {"enum": ["declarative", "imperative"]},
                    }
                ],
            ),
            "put": _empty(
                _operation(
                    "Declare applications; those that were declared before and are missing go.",
                    *(400, 409, 413),
                    requestBody=_CONFIG_BODY,
                )
            ),
            "delete": _empty(_operation("Delete every application; the instance stays.")),
        },
        "/api/v1/applications/{app}/deployments/{deployment}/scale": {
            "post": _operation(
                "Set the number of replicas of a deployment that is scaled from outside.",
                *(400, 404, 412, 413),
                parameters=[_in_path("app"), _in_path("deployment")],
                requestBody=_body(
                    {
                        "type": "object",
                        "properties": {"target_num_replicas": number},
                        "required": ["target_num_replicas"],
                        "additionalProperties": False,
                    }
                ),
            )
        },
        "/api/ray/version": {"get": _operation("Versions.")},
        "/api/remora/plan": {
            "post": _operation(
                "What declaring this would change.", 400, 409, 413, requestBody=_CONFIG_BODY
            )
        },
        "/api/remora/releases": {"get": _operation("What was deployed when.")},
        "/api/remora/rollback": {
            "post": _operation(
                "Go back to a release, or to the config before the present one.",
                *(400, 404, 409, 413),
                requestBody=_body({"type": "object", "properties": {"release": number}}),
            )
        },
        "/api/remora/schema": {"get": _operation("JSON Schema of a config.")},
        "/metrics": {
            "get": _operation("What all processes count, for Prometheus.", kind="text/plain")
        },
    }


def _relocate(value: Any) -> None:
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str):
            value["$ref"] = reference.replace("#/$defs/", "#/components/schemas/")
        for each in value.values():
            _relocate(each)
    elif isinstance(value, list):
        for each in value:
            _relocate(each)


def docs_page(described: dict[str, Any]) -> str:
    """Write the page for people. Pure."""
    rows = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            statuses = " ".join(operation["responses"])
            rows.append(
                f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
                f"<td>{escape(operation['summary'])}</td><td>{statuses}</td></tr>"
            )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Remora</title><style>"
        "body{font:16px/1.5 system-ui;max-width:64rem;margin:2rem auto;padding:0 1rem}"
        "td,th{text-align:left;padding:.3rem .8rem .3rem 0;vertical-align:top}</style>"
        f"<h1>Remora {escape(described['info']['version'])}</h1>"
        "<p>The same for tools: <a href=/openapi.json>/openapi.json</a>. A config has "
        "<a href=/api/remora/schema>a schema</a> as well."
        "<table><tr><th>method<th>path<th>what it does<th>answers</tr>"
        f"{''.join(rows)}</table></html>"
    )
