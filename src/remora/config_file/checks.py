"""What may be wrong with the values of a config, each problem with the path that leads to it.

Rules: pure. Knows values and not which keys there are: that is `declaration.py`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from remora.config import nearest
from remora.config_file.options import all_of_options, located
from remora.config_file.problem import Path, Problem, path_text
from remora.errors import NotSupportedYetError
from remora.options.deployment import KEYWORDS, check_deployment_name, deployment_config
from remora.options.runtime_env import read_runtime_env

#: Options of a deployment that are no keys of a file: it was taken out, for Ray Serve too.
_NOT_IN_FILES = frozenset({"version"})
DEPLOYMENT_KEYS = tuple(name for name in KEYWORDS if name not in _NOT_IN_FILES)


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


def kind_of(value: object) -> str:
    """Say what a value is, for people. Pure."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    found = names.get(type(value))
    return f"{found} ({_short(value)})" if found else _short(value)


def _short(value: object) -> str:
    text = "null" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def is_a(kind: type, words: str) -> Check:
    """Make a check for a type, which `words` names for people."""

    def check(value: Any, path: Path) -> Iterable[Problem]:
        if not isinstance(value, kind):
            yield Problem(path, f"must be {words}, not {kind_of(value)}")

    return check


def checked_by(convert: Callable[[Any], object]) -> Check:
    """Check a value with what the Python API checks it with."""

    def check(value: Any, path: Path) -> Iterable[Problem]:
        if isinstance(value, dict):
            yield from all_of_options(convert, value, path)
        elif value is not None:
            try:
                convert(value)
            except (TypeError, ValueError) as error:
                yield located(error, path)

    return check


def _mapping_of_text(value: Any, path: Path) -> Iterable[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"must be a mapping, not {kind_of(value)}")
        return
    for name, text in value.items():
        if not isinstance(text, str):
            yield Problem((*path, name), f"must be text, not {kind_of(text)}: put it in quotes")


def check_name(value: Any, path: Path) -> Iterable[Problem]:
    """Find what is wrong with the name of an application. Pure."""
    if not isinstance(value, str):
        yield Problem(path, f"must be text, not {kind_of(value)}")
    elif not value or not value.isprintable() or "#" in value or "/" in value:
        yield Problem(path, f"{value!r} is not a name: it may not be empty or contain '#' or '/'")


def check_route_prefix(value: Any, path: Path = ("route_prefix",)) -> Iterable[Problem]:
    """Find what is wrong with a route prefix. Pure."""
    if value is None:
        return
    if not isinstance(value, str):
        yield Problem(path, f"must be text or null, not {kind_of(value)}")
    elif not value.startswith("/"):
        yield Problem(path, f"{value!r} must start with '/': write '/{value.strip('/')}'")
    elif value != "/" and value.endswith("/"):
        yield Problem(path, f"{value!r} must not end with '/': write {value.rstrip('/') or '/'!r}")
    elif re.search(r"[{}\s]", value):
        yield Problem(path, f"{value!r} must not contain blanks or wildcards ('{{', '}}')")


def check_import_path(value: Any, path: Path = ("import_path",)) -> Iterable[Problem]:
    """Find what is wrong with an import path. Pure."""
    example = "write module:attribute, for example server:app"
    if not isinstance(value, str):
        yield Problem(path, f"must be text, not {kind_of(value)}: {example}")
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


def check_runtime_env(value: Any, path: Path) -> Iterable[Problem]:
    """Find what is wrong with the environment of an application. Pure."""
    if not isinstance(value, dict):
        yield Problem(path, f"must be a mapping, not {kind_of(value)}")
        return
    left = dict(value)
    if isinstance(value.get("env_vars"), dict):
        yield from (found := list(_mapping_of_text(value["env_vars"], (*path, "env_vars"))))
        if found:
            del left["env_vars"]
    yield from all_of_options(
        lambda given: read_runtime_env("runtime_env", given), left, path, "runtime_env"
    )


def check_deployments(value: Any, path: Path) -> Iterable[Problem]:
    """Find what is wrong with the options of deployments. Pure."""
    if not isinstance(value, list):
        yield Problem(path, f"must be a list, not {kind_of(value)}")
        return
    seen: dict[str, int] = {}
    for index, one in enumerate(value):
        here = (*path, index)
        if not isinstance(one, dict):
            yield Problem(here, f"must be a mapping with the key 'name', not {kind_of(one)}")
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
    yield from _unknown(one, DEPLOYMENT_KEYS, path)
    if "name" not in one:
        yield Problem(path, "the key 'name' is missing: it says which deployment is meant")
    else:
        yield from checked_by(check_deployment_name)(one["name"], (*path, "name"))
    known = {key: item for key, item in one.items() if key in DEPLOYMENT_KEYS and key != "name"}
    yield from all_of_options(deployment_config, known, path)


def _unknown(given: dict[Any, Any], allowed: Iterable[str], path: Path) -> Iterable[Problem]:
    known = sorted(allowed)
    for key in given:
        if key not in known:
            hint = nearest(str(key), known) or f" There are: {', '.join(known)}"
            yield Problem((*path, str(key)), f"no such key.{hint}")


def check_config_keys(given: Any, keys: Mapping[str, Key], path: Path) -> Iterable[Problem]:
    """Find what is wrong with a mapping that has these keys. Pure."""
    if not isinstance(given, dict):
        what = "the config" if not path else "it"
        yield Problem(path, f"{what} must be a mapping with keys, not {kind_of(given)}")
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
