"""What a config file declares: its keys, and what is wrong with their values.

`KEYS` and `APPLICATION_KEYS` are the only lists of keys; the checks, the messages and the JSON Schema
(`schema.py`) derive from them. What may stand in a deployment is `DeploymentOptions`, so an option that is added
there can be written in a file without a word here.

Rules: pure; reads no file. Every problem is collected with the path that leads to it, so that the
one who reads files can name lines (`read.py`), and a REST client is told all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from remora.config import (
    AdminOptions,
    EngineOptions,
    HTTPOptions,
    ProxyLocation,
    admin_options,
    engine_options,
    grpc_options,
    gRPCOptions,
    http_options,
    proxy_location,
)
from remora.config_file.checks import (
    DEPLOYMENT_KEYS,
    Key,
    check_config_keys,
    check_deployments,
    check_import_path,
    check_name,
    check_route_prefix,
    check_runtime_env,
    checked_by,
    is_a,
    kind_of,
)
from remora.config_file.options import located
from remora.config_file.problem import Path, Problem, path_text
from remora.errors import ConfigFileError
from remora.options.autoscaling import autoscaling_policy
from remora.options.checks import require_number
from remora.options.logging import LoggingConfig, logging_config
from remora.options.node import NodeOptions, node_options
from remora.options.tracing import TracingConfig, tracing_config
from remora.types import DEFAULT_APP_NAME

__all__ = ["DEPLOYMENT_KEYS", "Key", "Path", "Problem"]

#: Larger configs are refused before anything is done with them: a thousand applications take 1 MB.
MAX_CONFIG_BYTES = 4 * 1024 * 1024


class ApplicationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One application of a config."""

    #: Exactly as it was written, without defaults.
    given: dict[str, Any]
    name: str
    route_prefix: str | None
    import_path: str
    args: dict[str, Any]
    runtime_env: dict[str, Any]
    deployments: tuple[dict[str, Any], ...]
    autoscaling_policy: dict[str, Any] | None = None
    logging_config: dict[str, Any] | None = None
    external_scaler: bool = False
    #: Where each of `deployments` is named, by name: file, line and key.
    places: dict[str, str] = {}


class DeployConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole config."""

    #: Exactly as it was written, without defaults.
    given: dict[str, Any]
    applications: tuple[ApplicationConfig, ...]
    #: None: not said.
    http: HTTPOptions | None = None
    grpc: gRPCOptions | None = None
    location: ProxyLocation | None = None
    target_capacity: float | None = None
    admin: AdminOptions | None = None
    engine: EngineOptions | None = None
    logging: LoggingConfig | None = None
    tracing: TracingConfig | None = None


Check = Callable[[Any, Path], Iterable[Problem]]


def _check_applications(value: Any, path: Path) -> Iterable[Problem]:
    if not isinstance(value, list):
        yield Problem(path, f"must be a list, not {kind_of(value)}")
        return
    for index, one in enumerate(value):
        yield from check_config_keys(one, APPLICATION_KEYS, (*path, index))
    yield from _twice(value, path, "name", DEFAULT_APP_NAME)
    yield from _twice(value, path, "route_prefix", "/")


def _twice(applications: list[Any], path: Path, key: str, default: str) -> Iterable[Problem]:
    """Find what two applications of a config may not share."""
    seen: dict[Any, int] = {}
    for index, one in enumerate(applications):
        value = one.get(key, default) if isinstance(one, dict) else None
        if not isinstance(value, str):
            continue
        if value in seen:
            said = "" if key in one else " (the default)"
            yield Problem(
                (*path, index, key),
                f"{value!r}{said} is the {key} of {path_text((*path, seen[value]))} too: each "
                "application needs its own",
            )
        seen.setdefault(value, index)


# ------------------------------------------------------------------------------------------- keys

_TEXT = {"type": "string"}
_OBJECT = {"type": "object"}


def _nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), {"type": "null"}]}


APPLICATION_KEYS: dict[str, Key] = {
    "name": Key("Name of the application; unique.", {**_TEXT, "default": "default"}, check_name),
    "route_prefix": Key(
        "Path below which it is served; null: not over HTTP.",
        {**_nullable(_TEXT), "default": "/"},
        check_route_prefix,
    ),
    "import_path": Key(
        "module:attribute of an application, or of a function that builds one.",
        _TEXT,
        check_import_path,
        required=True,
    ),
    "args": Key("Arguments for a builder function.", _OBJECT, is_a(dict, "a mapping")),
    "runtime_env": Key(
        "Where its code is (working_dir) and what its processes find in their environment.",
        _OBJECT,
        check_runtime_env,
    ),
    "deployments": Key(
        "Options that take the place of those in the code, by deployment.",
        {"type": "array", "items": {"$ref": "#/$defs/deployment"}},
        check_deployments,
    ),
    "autoscaling_policy": Key(
        "Decides for all deployments of the application that are scaled.",
        _nullable(_OBJECT),
        checked_by(lambda value: autoscaling_policy(value, "autoscaling_policy")),
    ),
    "logging_config": Key(
        "How replicas log whose deployment does not say.", LoggingConfig, checked_by(logging_config)
    ),
    "external_scaler_enabled": Key(
        "Numbers of replicas are set from outside.",
        {"type": "boolean"},
        is_a(bool, "true or false"),
    ),
}

KEYS: dict[str, Key] = {
    "applications": Key(
        "All applications; one that was declared before and is not in here is deleted.",
        {"type": "array", "items": {"$ref": "#/$defs/application"}},
        _check_applications,
        required=True,
    ),
    "proxy_location": Key(
        "Where proxies run.",
        {"enum": [each.value for each in ProxyLocation]},
        checked_by(proxy_location),
    ),
    "http_options": Key("The front door.", HTTPOptions, checked_by(http_options)),
    "grpc_options": Key("The one for gRPC.", gRPCOptions, checked_by(grpc_options)),
    "admin_options": Key("Where the REST API listens.", AdminOptions, checked_by(admin_options)),
    "engine": Key(
        "What runs the processes.",
        {"enum": ["local", "ray"]},
        checked_by(lambda value: EngineOptions(engine=value)),
    ),
    "node_options": Key("Between the nodes of a cluster.", NodeOptions, checked_by(node_options)),
    "address": Key("Of the Ray cluster: host:port, auto or local.", _TEXT, is_a(str, "text")),
    "logging_config": Key("How everything logs.", LoggingConfig, checked_by(logging_config)),
    "tracing_config": Key("Where traces go.", TracingConfig, checked_by(tracing_config)),
    "controller_options": Key("The controller's environment.", _OBJECT, later=True),
    "target_capacity": Key(
        "Per cent of the replicas of every deployment that are switched on.",
        _nullable({"type": "number", "minimum": 0, "maximum": 100}),
        checked_by(lambda value: require_number("target_capacity", value, low=0, high=100)),
    ),
}
#: Keys of Ray Serve's old configs of a single application, and where they are now.
_MOVED = {
    "host": "it is http_options.host now",
    "port": "it is http_options.port now",
    "import_path": "it belongs to an application: applications: [{import_path: …}]",
}


def problems(given: object) -> list[Problem]:
    """Find everything that is wrong with a config. Pure."""
    if isinstance(given, dict):
        moved = [Problem((key,), _MOVED[key]) for key in _MOVED if key in given]
        if moved:
            return moved
    found = list(check_config_keys(given, KEYS, ()))
    if not found and isinstance(given, dict):
        try:
            _engine(given)
        except (TypeError, ValueError) as error:
            found.append(located(error, ("address",)))
    return found


def parse(
    given: object,
    tell: Callable[[Problem], str] = str,
    place: Callable[[Problem], int] = lambda _problem: 0,
) -> DeployConfig:
    """Check a config and give it a type.

    Pure.

    Args:
        given: what was read from YAML or JSON.
        tell: says where a problem is.
        place: by which problems are ordered, for example its line.

    Raises:
        ConfigFileError: names everything that is wrong.
    """
    found = problems(given)
    if found:
        raise ConfigFileError([tell(problem) for problem in sorted(found, key=place)])
    assert isinstance(given, dict)
    location = given.get("proxy_location")
    http, grpc = given.get("http_options"), given.get("grpc_options")
    return DeployConfig(
        given=given,
        applications=tuple(
            parse_application(one, _places(one, ("applications", index), tell))
            for index, one in enumerate(given["applications"])
        ),
        http=http_options(http) if http is not None else None,
        grpc=grpc_options(grpc) if grpc is not None else None,
        location=proxy_location(location) if location is not None else None,
        target_capacity=given.get("target_capacity"),
        admin=admin_options(given["admin_options"]) if given.get("admin_options") else None,
        engine=_engine(given),
        logging=logging_config(given.get("logging_config")),
        tracing=tracing_config(given.get("tracing_config")),
    )


def _engine(given: dict[str, Any]) -> EngineOptions | None:
    engine, address, node = (given.get(name) for name in ("engine", "address", "node_options"))
    if engine is None and address is None and not node:
        return None
    # What a file says holds wherever it is read, whatever the environment says.
    chosen = engine or "ray"
    return engine_options(
        chosen, None if chosen == "local" else address or "", given.get("proxy_location"), node
    )


def _places(given: dict[str, Any], path: Path, tell: Callable[[Problem], str]) -> dict[str, str]:
    """Say where each deployment of an application is named: only its code knows which it has."""
    return {
        one["name"]: tell(Problem((*path, "deployments", index, "name"), "")).rstrip(": ")
        for index, one in enumerate(given.get("deployments") or ())
    }


def parse_application(
    given: dict[str, Any], places: Mapping[str, str] | None = None
) -> ApplicationConfig:
    """Give one application of a config its type; it was checked before.

    Pure.

    Args:
        given: what the config says of it.
        places: where it names each deployment, for people.
    """
    return ApplicationConfig(
        given=given,
        places=dict(places or {}),
        name=given.get("name", DEFAULT_APP_NAME),
        route_prefix=given.get("route_prefix", "/"),
        import_path=given["import_path"],
        args=given.get("args") or {},
        runtime_env=given.get("runtime_env") or {},
        deployments=tuple(given.get("deployments") or ()),
        autoscaling_policy=given.get("autoscaling_policy"),
        logging_config=given.get("logging_config"),
        external_scaler=given.get("external_scaler_enabled", False),
    )
