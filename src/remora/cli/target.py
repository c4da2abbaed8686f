"""From the words `module:attribute key=value …` to an application.

Rules: prints nothing. Every way in which a target can be wrong ends in a `CommandError` that says
what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remora.build import import_path
from remora.build.import_path import Target
from remora.cli.errors import CommandError, UsageError
from remora.deployment import Application
from remora.errors import AppLoadError

__all__ = ["Target", "load", "parse_arguments", "parse_target"]

_HOW = "Name the application as module:attribute, for example `remora run server:app`."


def parse_target(text: str) -> Target:
    """Read `module:attribute` or `module.attribute`. Pure.

    Raises:
        UsageError: it is neither.
    """
    if text.endswith((".yaml", ".yml")):
        raise UsageError(f"{text} is a config file; an application is needed here. {_HOW}")
    if text.count(":") > 1:
        raise UsageError(f"{text!r} has more than one colon. {_HOW}")
    if "/" in text or text.endswith(".py"):
        raise UsageError(f"{text!r} is a path, not an import path. {_path_hint(text)}")
    module, _, attribute = text.partition(":") if ":" in text else text.rpartition(".")
    if not module or not attribute:
        raise UsageError(f"{text!r} does not say which application. {_HOW}")
    for word in (*module.split("."), *attribute.split(".")):
        if not word.isidentifier():
            raise UsageError(f"{text!r} cannot be imported: {word!r} is not a name. {_HOW}")
    return Target(module, attribute)


def _path_hint(text: str) -> str:
    path, _, attribute = text.partition(":")
    file = Path(path)
    folder = "" if str(file.parent) == "." else f"-d {file.parent} "
    return f"Try `remora run {folder}{file.stem}:{attribute or 'app'}`."


def parse_arguments(pairs: Sequence[str]) -> dict[str, str]:
    """Read `key=value` words. Pure.

    Raises:
        UsageError: a word has no `=`, no key, or a key comes twice.
    """
    arguments: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"{pair!r} is not an argument of the form key=value. Arguments for an application "
                "builder follow the target: `remora run server:build model=small`."
            )
        if key in arguments:
            raise UsageError(f"The argument {key!r} is given twice.")
        arguments[key] = value
    return arguments


def load(target: Target, arguments: Mapping[str, Any], app_dir: Path) -> Application:
    """Import the module and return the application, calling a builder when it is one.

    `app_dir` is put in front of `sys.path`, and stays there: the module may import more later.

    Raises:
        CommandError: there is no such module or attribute, or it leads to no application.
    """
    try:
        return import_path.load(target, arguments, app_dir)
    except AppLoadError as error:
        raise CommandError(error.message, user_traceback=error.user_traceback) from None
