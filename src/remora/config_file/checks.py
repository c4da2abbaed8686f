"""What may be wrong with the values of a config, each problem with the path that leads to it.

Rules: pure. Knows values and not which keys there are: that is `declaration.py`'s.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from remora.config import nearest
from remora.errors import ConfigError, NotSupportedYetError
from remora.options.deployment import KEYWORDS, check_deployment_name, deployment_config
from remora.options.runtime_env import read_runtime_env

#: Keys and indexes that lead to a value.
Path = tuple["str | int", ...]

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
    if isinstance(value.get("env_vars"), dict):
        found = list(_mapping_of_text(value["env_vars"], (*path, "env_vars")))
        if found:
            yield from found
            return
    try:
        read_runtime_env("runtime_env", value)
    except (TypeError, ValueError) as error:
        yield located_below(error, "runtime_env", path)


def located_below(error: Exception, word: str, path: Path) -> Problem:
    """Locate an error of an option that is checked inside another one. Pure.

    Args:
        error: what its check raised.
        word: the other one's name, after which the keys begin that the error names.
        path: leads to the other one.
    """
    if not isinstance(error, ConfigError):
        return Problem(path, str(error))
    keys = re.findall(r"\w+", error.field)
    keys = keys[keys.index(word) + 1 :] if word in keys else keys
    steps = (int(key) if key.isdecimal() else key for key in keys)
    return Problem((*path, *steps), str(error).removeprefix(error.field).removeprefix("="))


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
    yield from _all_of_options(known, path)


#: Keys that are compared with each other: without one, nothing can be said of the others.
_COMPARED = (
    {"min_replicas", "max_replicas", "initial_replicas"},
    {"initial_backoff_s", "max_backoff_s"},
    {"num_replicas", "gang_scheduling_config", "gang_size"},
    {
        "placement_group_bundles",
        "placement_group_strategy",
        "placement_group_bundle_label_selector",
    },
)


def _all_of_options(given: dict[str, Any], path: Path) -> Iterable[Problem]:
    """Find all that is wrong with options: their check stops at the first, which is left out then."""
    left = copy.deepcopy(given)
    told: set[Path] = set()
    silent: set[str] = set()
    while (problem := _first_of_options(left, path)) is not None:
        steps = problem.path[len(path) :]
        leaf = str(steps[-1]) if steps else ""
        again = problem.path in told
        if not again and leaf not in silent:
            yield problem
        told.add(problem.path)
        silent.update(*(group for group in _COMPARED if leaf in group))
        if not _removed(left, steps[:1] if again else steps):
            # It says what does not go with a default that took the place of what was left out.
            others = sorted(silent & left.keys())
            if not others:
                return
            del left[others[0]]


def _first_of_options(given: dict[str, Any], path: Path) -> Problem | None:
    try:
        deployment_config(given)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        problem = _located(error, path)
        word = str(error).partition(" ")[0]
        # What is wrong in type is told as Python does, which begins with its name.
        if problem.path == path and word in given:
            return Problem((*path, word), str(error).removeprefix(f"{word} "))
        return problem
    return None


def _removed(options: dict[str, Any], steps: Path) -> bool:
    """Take out what steps lead to, or the option that it should be in; False: there is none."""
    found: Any = options
    for step in steps[:-1]:
        found = found.get(step) if isinstance(found, dict) else None
    if steps and isinstance(found, dict) and steps[-1] in found:
        del found[steps[-1]]
        return True
    return bool(steps) and options.pop(str(steps[0]), _ABSENT) is not _ABSENT


_ABSENT = object()


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
