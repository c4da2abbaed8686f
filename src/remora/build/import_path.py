"""From `module:attribute` and arguments to an application.

Rules: reads the user's module and nothing else; prints nothing. Every way in which it can go wrong
ends in an `AppLoadError` that says what to write instead, with the user's own traceback where
their code has raised.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from remora.config import nearest
from remora.deployment import Application, Deployment
from remora.errors import AppLoadError
from remora.observe.tracebacks import user_traceback


@dataclass(frozen=True)
class Target:
    """Where an application is found.

    Attributes:
        module: dotted name of the module.
        attribute: name inside of it, dotted for a name inside a class.
    """

    module: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"

    @classmethod
    def of(cls, text: str) -> Target:
        """Split `module:attribute` or `module.attribute`, which was checked before. Pure."""
        module, _, attribute = text.partition(":") if ":" in text else text.rpartition(".")
        return cls(module, attribute)


def load(target: Target, arguments: Mapping[str, Any], app_dir: Path | None) -> Application:
    """Import the module and return the application, calling a builder when it is one.

    `app_dir` is put in front of `sys.path`, and stays there: the module may import more later. None:
    there is no such folder.

    Raises:
        AppLoadError: there is no such module or attribute, or it leads to no application.
    """
    folder = str(app_dir)
    if app_dir is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    found = _attribute(_import(target, app_dir), target)
    if isinstance(found, Application):
        if arguments:
            raise AppLoadError(
                f"{target} is an application and takes no arguments, but got "
                f"{', '.join(arguments)}. Only a function that builds an application takes some."
            )
        return found
    if isinstance(found, Deployment):
        raise AppLoadError(
            f"{target} is a deployment that is not bound to its arguments. Bind it, "
            f"`app = {target.attribute}.bind()`, and run {target.module}:app."
        )
    if inspect.isclass(found) or not callable(found):
        raise AppLoadError(
            f"{target} is {_kind(found)}, not an application. Make one with `.bind()` on a class "
            "or function under @serve.deployment."
        )
    return _build(found, arguments, target)


def _kind(value: object) -> str:
    return (
        f"the class {value.__name__}"
        if inspect.isclass(value)
        else f"an object of type {type(value).__name__}"
    )


def _import(target: Target, app_dir: Path | None) -> ModuleType:
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if target.module == missing or target.module.startswith(f"{missing}."):
            raise _no_such_module(target.module, missing, app_dir) from None
        raise _users_error(f"{target.module} could not be imported.", error) from None
    # Border: importing runs the user's code, which may raise anything, SystemExit included.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        raise _users_error(f"{target.module} could not be imported.", error) from None


def _users_error(message: str, error: BaseException) -> AppLoadError:
    return AppLoadError(message, user_traceback(error).rstrip())


def _no_such_module(module: str, missing: str, app_dir: Path | None) -> AppLoadError:
    where = "on sys.path" if app_dir is None else f"in {app_dir} or on sys.path"
    if missing != module:
        return AppLoadError(f"There is no module {module!r} {where}: {missing!r} is missing.")
    known: set[str] = set()
    if app_dir is not None:
        known |= {p.stem for p in app_dir.glob("*.py")}
        known |= {p.parent.name for p in app_dir.glob("*/__init__.py")}
    return AppLoadError(
        f"There is no module {module!r} {where}.{nearest(module, known)} "
        "`-d FOLDER`, or `working_dir` in the `runtime_env` of a config, names the folder that it is in."
    )


def _attribute(module: ModuleType, target: Target) -> Any:
    found: Any = module
    for word in target.attribute.split("."):
        try:
            found = getattr(found, word)
        except AttributeError:
            raise _no_such_attribute(found, word, module, target) from None
    return found


def _no_such_attribute(
    holder: object, word: str, module: ModuleType, target: Target
) -> AppLoadError:
    applications = [name for name, value in vars(module).items() if isinstance(value, Application)]
    known = [name for name in dir(holder) if not name.startswith("_")]
    hint = nearest(word, known)
    if not hint and applications:
        hint = (
            f" It has the application {applications[0]!r}: run {target.module}:{applications[0]}."
        )
    file = getattr(module, "__file__", None) or "a namespace package, which has no code of its own"
    return AppLoadError(f"The module {target.module!r} ({file}) has no {word!r}.{hint}")


def _build(
    builder: Callable[..., Any], arguments: Mapping[str, Any], target: Target
) -> Application:
    parameters = list(inspect.signature(builder).parameters.values())
    if len(parameters) != 1:
        raise AppLoadError(
            f"{target} takes {len(parameters)} parameters; an application builder takes exactly "
            "one, a dict or a typed model of its arguments."
        )
    try:
        value = _typed(builder, parameters[0], arguments)
    # Border: validation runs the user's validators.
    except Exception as error:  # noqa: BLE001
        raise AppLoadError(f"The arguments do not fit {target}: {error}") from None
    try:
        application = builder(value)
    # Border: the builder is the user's code.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        raise _users_error(f"{target} could not build an application.", error) from None
    if not isinstance(application, Application):
        raise AppLoadError(
            f"{target} returned {_kind(application)}, not an application. "
            "A builder returns what `.bind(...)` returns."
        )
    return application


def _typed(
    builder: Callable[..., Any], parameter: inspect.Parameter, arguments: Mapping[str, Any]
) -> Any:
    """Turn the words of the command line into what the builder's annotation asks for."""
    wanted = typing.get_type_hints(builder).get(parameter.name, dict)
    if inspect.isclass(wanted) and hasattr(wanted, "model_validate"):
        return wanted.model_validate(dict(arguments))
    if is_dataclass(wanted) or typing.is_typeddict(wanted) or hasattr(wanted, "__struct_fields__"):
        import msgspec

        # Not strict: everything on a command line is a string.
        return msgspec.convert(dict(arguments), wanted, strict=False)
    return dict(arguments)
