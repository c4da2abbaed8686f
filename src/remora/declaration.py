"""What a config file declares: its keys, and what is wrong with their values.

`KEYS` and `APPLICATION_KEYS` are the only lists of keys; the checks, the messages and the JSON Schema
(`config_schema.py`) derive from them. What may stand in a deployment is `DeploymentOptions`, so an option that is added
there can be written in a file without a word here.

Rules: pure; reads no file. Every problem is collected with the path that leads to it, so that the
one who reads files can name lines (`config_file.py`), and a REST client is told all of them at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from remora.autoscaling_config import autoscaling_policy
from remora.checks import require_number
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
    nearest,
    proxy_location,
)
from remora.errors import ConfigError, ConfigFileError, NotSupportedYetError
from remora.logging_config import LoggingConfig, logging_config
from remora.options import KEYWORDS, check_deployment_name, deployment_config
from remora.runtime_env import read_runtime_env
from remora.types import DEFAULT_APP_NAME

#: Keys and indexes that lead to a value.
Path = tuple["str | int", ...]

#: Larger configs are refused before anything is done with them: a thousand applications take 1 MB.
MAX_CONFIG_BYTES = 4 * 1024 * 1024
#: Options of a deployment that are no keys of a file: it was taken out, for Ray Serve too.
_NOT_IN_FILES = frozenset({"version"})
DEPLOYMENT_KEYS = tuple(name for name in KEYWORDS if name not in _NOT_IN_FILES)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a config.

    Attributes:
        path: leads to it.
        message: what, and what to write instead.
    """

    path: Path
    message: str

    def __str__(self) -> str:
        where = path_text(self.path)
        return f"{where}: {self.message}" if where else self.message


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


Check = Callable[[Any, Path], Iterable[Problem]]


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        text: what it is for, for editors.
        schema: JSON Schema of its value, or the struct that it stands for.
        check: finds what is wrong with a value.
        required: it may not be left out.
        later: nothing acts on it yet: only null is accepted.
    """

    text: str
    schema: Mapping[str, Any] | type[msgspec.Struct]
    check: Check = lambda _value, _path: ()
    required: bool = False
    later: bool = False


def path_text(path: Path) -> str:
    """Write a path as people do: `applications[0].name`. Pure."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


# ----------------------------------------------------------------------------------------- checks


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    found = names.get(type(value))
    return f"{found} ({_short(value)})" if found else _short(value)


def _short(value: object) -> str:
    text = "null" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _is(kind: type, words: str) -> Check:
    def check(value: Any, path: Path) -> Iterable[Problem]:
        if not isinstance(value, kind):
            yield Problem(path, f"must be {words}, not {_kind(value)}")

    return check


def _by(convert: Callable[[Any], object]) -> Check:
    """Check a value with what the Python API checks it with."""

    def check(value: Any, path: Path) -> Iterable[Problem]:
        if value is None:
            return
        try:
            convert(value)
        except (TypeError, ValueError) as error:
            yield _located(error, path)

    return check


def _located(error: Exception, path: Path) -> Problem:
    """Turn an error of the Python API into a problem at the key that it names."""
    if not isinstance(error, ConfigError):
        return Problem(path, str(error))
    keys = re.findall(r"\w+", error.field)
    if path and keys and keys[0] == path[-1]:
        keys = keys[1:]
    return Problem((*path, *keys), str(error).removeprefix(error.field).removeprefix("="))


def _mapping_of_text(value: Any, path: Path) -> Iterable[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"must be a mapping, not {_kind(value)}")
        return
    for name, text in value.items():
        if not isinstance(text, str):
            yield Problem((*path, name), f"must be text, not {_kind(text)}: put it in quotes")


def _check_name(value: Any, path: Path) -> Iterable[Problem]:
    if not isinstance(value, str):
        yield Problem(path, f"must be text, not {_kind(value)}")
    elif not value or not value.isprintable() or "#" in value or "/" in value:
        yield Problem(path, f"{value!r} is not a name: it may not be empty or contain '#' or '/'")


def check_route_prefix(value: Any, path: Path = ("route_prefix",)) -> Iterable[Problem]:
    """Find what is wrong with a route prefix. Pure."""
    if value is None:
        return
    if not isinstance(value, str):
        yield Problem(path, f"must be text or null, not {_kind(value)}")
    elif not value.startswith("/"):
        yield Problem(path, f"{value!r} must start with '/': write '/{value}'")
    elif value != "/" and value.endswith("/"):
        yield Problem(path, f"{value!r} must not end with '/': write {value.rstrip('/') or '/'!r}")
    elif re.search(r"[{}\s]", value):
        yield Problem(path, f"{value!r} must not contain blanks or wildcards ('{{', '}}')")


def check_import_path(value: Any, path: Path = ("import_path",)) -> Iterable[Problem]:
    """Find what is wrong with an import path. Pure."""
    example = "write module:attribute, for example server:app"
    if not isinstance(value, str):
        yield Problem(path, f"must be text, not {_kind(value)}: {example}")
        return
    if value.count(":") > 1:
        yield Problem(path, f"{value!r} has more than one colon: {example}")
        return
    module, _, attribute = value.partition(":") if ":" in value else value.rpartition(".")
    words = [*module.split("."), *attribute.split(".")]
    wrong = next((word for word in words if not word.isidentifier()), None)
    if wrong is not None:
        what = f"{wrong!r} is not a name" if wrong else "a part of it is missing"
        yield Problem(path, f"{value!r} cannot be imported, {what}: {example}")


def _check_runtime_env(value: Any, path: Path) -> Iterable[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"must be a mapping, not {_kind(value)}")
        return
    if isinstance(value.get("env_vars"), dict):
        found = list(_mapping_of_text(value["env_vars"], (*path, "env_vars")))
        if found:
            yield from found
            return
    try:
        read_runtime_env("runtime_env", value)
    except (TypeError, ValueError) as error:
        yield _below(error, "runtime_env", path)


def _below(error: Exception, word: str, path: Path) -> Problem:
    """Locate an error of an option that is checked inside another one."""
    if not isinstance(error, ConfigError):
        return Problem(path, str(error))
    keys = re.findall(r"\w+", error.field)
    keys = keys[keys.index(word) + 1 :] if word in keys else keys
    return Problem((*path, *keys), str(error).removeprefix(error.field).removeprefix("="))


def _check_deployments(value: Any, path: Path) -> Iterable[Problem]:
    if not isinstance(value, list):
        yield Problem(path, f"must be a list, not {_kind(value)}")
        return
    seen: dict[str, int] = {}
    for index, one in enumerate(value):
        here = (*path, index)
        if not isinstance(one, dict):
            yield Problem(here, f"must be a mapping with the key 'name', not {_kind(one)}")
            continue
        yield from _check_deployment(one, here)
        name = one.get("name")
        if isinstance(name, str) and name in seen:
            yield Problem(
                (*here, "name"), f"{name!r} is the name of {path_text((*path, seen[name]))} too"
            )
        elif isinstance(name, str):
            seen[name] = index


def _check_deployment(one: dict[str, Any], path: Path) -> Iterable[Problem]:
    unknown = list(_unknown(one, DEPLOYMENT_KEYS, path))
    yield from unknown
    if "name" not in one:
        yield Problem(path, "the key 'name' is missing: it says which deployment is meant")
    else:
        yield from _by(check_deployment_name)(one["name"], (*path, "name"))
    if unknown:
        return
    try:
        deployment_config({key: item for key, item in one.items() if key != "name"})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        yield _located(error, path)


def _unknown(given: dict[Any, Any], allowed: Iterable[str], path: Path) -> Iterable[Problem]:
    known = sorted(allowed)
    for key in given:
        if key not in known:
            hint = nearest(str(key), known) or f" There are: {', '.join(known)}"
            yield Problem((*path, str(key)), f"no such key.{hint}")


def _check_keys(given: Any, keys: Mapping[str, Key], path: Path) -> Iterable[Problem]:
    if not isinstance(given, dict):
        what = "the config" if not path else "it"
        yield Problem(path, f"{what} must be a mapping with keys, not {_kind(given)}")
        return
    yield from _unknown(given, keys, path)
    for name, key in keys.items():
        if name not in given:
            if key.required:
                yield Problem(path, f"the key {name!r} is missing: {key.text}")
        elif given[name] is None and not path and not key.required:
            pass  # at the top the same as left out
        elif not key.later:
            yield from key.check(given[name], (*path, name))
        elif not (given[name] is None or given[name] is False or given[name] == {}):
            refused = str(NotSupportedYetError(name, given[name])).removeprefix(f"{name}=")
            yield Problem((*path, name), refused)


def _check_applications(value: Any, path: Path) -> Iterable[Problem]:
    if not isinstance(value, list):
        yield Problem(path, f"must be a list, not {_kind(value)}")
        return
    for index, one in enumerate(value):
        yield from _check_keys(one, APPLICATION_KEYS, (*path, index))
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
    "name": Key("Name of the application; unique.", {**_TEXT, "default": "default"}, _check_name),
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
    "args": Key("Arguments for a builder function.", _OBJECT, _is(dict, "a mapping")),
    "runtime_env": Key(
        "Where its code is (working_dir) and what its processes find in their environment.",
        _OBJECT,
        _check_runtime_env,
    ),
    "deployments": Key(
        "Options that take the place of those in the code, by deployment.",
        {"type": "array", "items": {"$ref": "#/$defs/deployment"}},
        _check_deployments,
    ),
    "autoscaling_policy": Key(
        "Decides for all deployments of the application that are scaled.",
        _nullable(_OBJECT),
        _by(lambda value: autoscaling_policy(value, "autoscaling_policy")),
    ),
    "logging_config": Key(
        "How replicas log whose deployment does not say.", LoggingConfig, _by(logging_config)
    ),
    "external_scaler_enabled": Key(
        "Numbers of replicas are set from outside.", {"type": "boolean"}, _is(bool, "true or false")
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
        _by(proxy_location),
    ),
    "http_options": Key("The front door.", HTTPOptions, _by(http_options)),
    "grpc_options": Key("The one for gRPC.", gRPCOptions, _by(grpc_options)),
    "admin_options": Key("Where the REST API listens.", AdminOptions, _by(admin_options)),
    "engine": Key(
        "What runs the processes.",
        {"enum": ["local", "ray"]},
        _by(lambda value: EngineOptions(engine=value)),
    ),
    "address": Key("Of the Ray cluster: host:port, auto or local.", _TEXT, _is(str, "text")),
    "logging_config": Key("How everything logs.", LoggingConfig, _by(logging_config)),
    "tracing_config": Key("Where traces go.", _OBJECT, later=True),
    "controller_options": Key("The controller's environment.", _OBJECT, later=True),
    "target_capacity": Key(
        "Per cent of the replicas of every deployment that are switched on.",
        _nullable({"type": "number", "minimum": 0, "maximum": 100}),
        _by(lambda value: require_number("target_capacity", value, low=0, high=100)),
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
    found = list(_check_keys(given, KEYS, ()))
    if not found and isinstance(given, dict):
        found += _by(_engine)(given, ("address",))
    return found


def parse(given: object, tell: Callable[[Problem], str] = str) -> DeployConfig:
    """Check a config and give it a type.

    Pure.

    Args:
        given: what was read from YAML or JSON.
        tell: says where a problem is.

    Raises:
        ConfigFileError: names everything that is wrong.
    """
    found = problems(given)
    if found:
        raise ConfigFileError([tell(problem) for problem in found])
    assert isinstance(given, dict)
    location = given.get("proxy_location")
    http, grpc = given.get("http_options"), given.get("grpc_options")
    return DeployConfig(
        given=given,
        applications=tuple(parse_application(one) for one in given["applications"]),
        http=http_options(http) if http is not None else None,
        grpc=grpc_options(grpc) if grpc is not None else None,
        location=proxy_location(location) if location is not None else None,
        target_capacity=given.get("target_capacity"),
        admin=admin_options(given["admin_options"]) if given.get("admin_options") else None,
        engine=_engine(given),
        logging=logging_config(given.get("logging_config")),
    )


def _engine(given: dict[str, Any]) -> EngineOptions | None:
    said = [given.get(name) for name in ("engine", "address")]
    if said == [None, None]:
        return None
    # What a file says holds wherever it is read, whatever the environment says.
    engine, address = said
    chosen = engine or "ray"
    return engine_options(
        chosen, None if chosen == "local" else address or "", given.get("proxy_location")
    )


def parse_application(given: dict[str, Any]) -> ApplicationConfig:
    """Give one application of a config its type; it was checked before. Pure."""
    return ApplicationConfig(
        given=given,
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
