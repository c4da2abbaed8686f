"""All that is wrong with options whose own check stops at the first.

The Python API raises at the first value that cannot be right. Whoever writes a file wants to hear of all of
them, so what was found is left out, and the check is asked again.

Rules: pure. Of the keys it knows those alone that are compared with each other; all else the check does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

from remora.config_file.problem import Path, Problem
from remora.errors import ConfigError

#: Problems of one group of options that are told: nobody reads more at once, and each costs a check of
#: all that is left.
MAX_TOLD = 100

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
    {"ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs"},
)
_ABSENT = object()


def all_of_options(
    convert: Callable[[Any], object], given: dict[str, Any], path: Path, word: str = ""
) -> Iterable[Problem]:
    """Find all that is wrong with options, `MAX_TOLD` at most. Pure.

    Args:
        convert: checks all of them and raises at the first that is wrong.
        given: the options.
        path: leads to them.
        word: as in `located`.
    """
    left = copy.deepcopy(given)
    told: set[Path] = set()
    silent: set[str] = set()
    gone: dict[Path, list[int]] = {}
    while len(told) < MAX_TOLD and (problem := _first(convert, left, path, word)) is not None:
        steps = problem.path[len(path) :]
        place = _as_given(steps, gone)
        leaf = str(place[-1]) if place else ""
        again = place in told
        # What a value lacks after something in it was left out says nothing.
        lacks = bool(place) and any(each[: len(place)] == place for each in told)
        if not again and not lacks and leaf not in silent:
            yield Problem((*path, *place), problem.message)
        told.add(place)
        silent.update(*(group for group in _COMPARED if leaf in group))
        if not _removed(left, steps[:1] if again else steps, gone):
            # It says what does not go with a default that took the place of what was left out.
            others = sorted(silent & left.keys())
            if not others:
                return
            del left[others[0]]


def _first(
    convert: Callable[[Any], object], given: dict[str, Any], path: Path, word: str
) -> Problem | None:
    try:
        convert(given)
    except (TypeError, ValueError) as error:
        problem = located(error, path, word)
        name = str(error).partition(" ")[0]
        # What is wrong in type is told as Python does, which begins with its name.
        if problem.path == path and name in given:
            return Problem((*path, name), str(error).removeprefix(f"{name} "))
        return problem
    return None


def located(error: Exception, path: Path, word: str = "") -> Problem:
    """Turn an error of the Python API into a problem at the key that it names. Pure.

    Args:
        error: what a check raised.
        path: leads to what was checked.
        word: what the error calls that; what comes before it leads to it. Empty: the last of `path`.
    """
    if not isinstance(error, ConfigError):
        return Problem(path, str(error))
    keys = re.findall(r"\w+", error.field)
    if word in keys:
        keys = keys[keys.index(word) + 1 :]
    elif not word and path and keys and keys[0] == path[-1]:
        keys = keys[1:]
    steps = (int(key) if key.isdecimal() else key for key in keys)
    return Problem((*path, *steps), str(error).removeprefix(error.field).removeprefix("="))


def _as_given(steps: Path, gone: dict[Path, list[int]]) -> Path:
    """Say where something was before items of lists were taken out."""
    place: Path = ()
    for step in steps:
        if isinstance(step, int):
            for index in sorted(gone.get(place, ())):
                step += index <= step
        place = (*place, step)
    return place


def _removed(options: dict[str, Any], steps: Path, gone: dict[Path, list[int]]) -> bool:
    """Take out what steps lead to, or the option that it should be in; False: there is none."""
    found: Any = options
    for step in steps[:-1]:
        found = _inside(found, step)
    last = steps[-1] if steps else ""
    if steps and _inside(found, last) is not _ABSENT:
        place = _as_given(steps, gone)
        del found[last]
        if isinstance(last, int):
            gone.setdefault(place[:-1], []).append(int(place[-1]))
        return True
    return bool(steps) and options.pop(str(steps[0]), _ABSENT) is not _ABSENT


def _inside(found: Any, step: str | int) -> Any:
    if isinstance(found, dict):
        return found.get(step, _ABSENT)
    if isinstance(found, list) and isinstance(step, int) and step < len(found):
        return found[step]
    return _ABSENT
