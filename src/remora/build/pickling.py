"""Carry code and constructor arguments to a replica as bytes.

What a replica can import goes by reference (`module`, `name`); everything else, above all
what a script defines in `__main__`, goes by value. By reference is quicker, smaller, and
keeps one copy of a module's globals in the replica. `@deployment` rebinds a class's name to a
`Deployment`, which would make the class unfindable by name; `deployed_reference` looks
through it.

Rules: bytes made here are opened only in a replica. `dumps` may touch cloudpickle's registry
of by-value modules, and leaves it as it was.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle

from remora.build.by_name import ByName
from remora.deployment import Application, Deployment
from remora.errors import CodeNotPicklableError

#: Replaces an application found among the arguments by what the constructor shall see.
Replace = Callable[[Application], object]

#: Everything below these folders is installed: a replica of the same interpreter has it too.
_INSTALLED = tuple({str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix)})
_LOCK = type(threading.Lock())
#: How deep the search for what cannot be pickled goes.
_MAX_DEPTH = 8


class _Bound:
    """Marks where the code ends and the arguments begin: only there applications are replaced."""

    __slots__ = ("value",)

    def __init__(self, value: tuple[Any, ...] | dict[str, Any]) -> None:
        self.value = value


def dumps_call(
    func_or_class: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    replace: Replace,
) -> bytes:
    """Pickle `(func_or_class, args, kwargs)`; plain `pickle.loads` opens it.

    Raises:
        CodeNotPicklableError: names the variable, attribute or argument that is to blame.
    """
    try:
        return _dumps((func_or_class, _Bound(args), _Bound(kwargs)), replace)
    except Exception as error:
        for what, part in (
            ("the code", func_or_class),
            *((f"argument {i} of bind()", arg) for i, arg in enumerate(args)),
            *((f"argument {name!r} of bind()", arg) for name, arg in kwargs.items()),
        ):
            if (culprit := _culprit(part, replace, 0)) is not None:
                path, reason = culprit
                raise CodeNotPicklableError(" -> ".join((what, *path)), str(reason)) from error
        raise CodeNotPicklableError("the code", str(error)) from error


def dumps_by_value(value: object, what: str) -> bytes:
    """Pickle `value` with all of the user's code that it needs; only what is installed is named.

    For processes that do not import from where the application does.

    Args:
        value: a class or function.
        what: what it is, for the message.

    Raises:
        CodeNotPicklableError: names the variable or attribute that is to blame.
    """
    try:
        return _dumps(value, lambda app: app, by_value=True)
    except Exception as error:
        culprit = _culprit(value, lambda app: app, 0)
        path, reason = culprit if culprit is not None else ((), error)
        raise CodeNotPicklableError(
            " -> ".join((what, *path)),
            str(reason),
            "other processes",
            "in a method that runs there",
        ) from error


def _dumps(value: object, replace: Replace, by_value: bool = False) -> bytes:
    file = io.BytesIO()
    pickler = _CodePickler(file, replace, by_value)
    try:
        pickler.dump(value)
    finally:
        for module in pickler.registered:
            cloudpickle.unregister_pickle_by_value(module)
    return file.getvalue()


class _CodePickler(cloudpickle.Pickler):  # type: ignore[misc]  # the library has no types
    """cloudpickle, which also knows deployments, applications and FastAPI apps."""

    def __init__(self, file: io.BytesIO, replace: Replace, by_value: bool) -> None:
        super().__init__(file, protocol=5)
        self._replace = replace
        self._is_known = is_installed if by_value else is_importable
        self._in_args = False
        self.registered: list[types.ModuleType] = []

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.FunctionType or issubclass(kind, type):
            if (found := deployed_reference(obj, self._is_known)) is not None:
                return load_deployed, found
            self._choose(obj.__module__)
        elif kind is types.ModuleType:
            self._choose(obj.__name__)
        elif issubclass(kind, ByName):
            self._choose(obj.__module__)
        elif kind is _Bound:
            self._in_args = True
            return type(obj.value), (obj.value,)
        elif kind is Application and self._in_args:
            # `copyreg` style reduction to an existing object: identity on both sides.
            return operator.itemgetter(0), ([self._replace(obj)],)
        elif (reduced := _reduce_web_app_part(obj, kind)) is not None:
            return reduced
        return super().reducer_override(obj)

    def _choose(self, module_name: str | None) -> None:
        """Let cloudpickle send a module's content by value if the replica cannot import it."""
        module = sys.modules.get(module_name or "__main__")
        if module is None or module.__name__ == "__main__" or self._is_known(module):
            return
        if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self.registered.append(module)


def _set_state(obj: Any, state: dict[str, Any]) -> None:
    obj.__dict__.update(state)


def _set_state_with_locks(obj: Any, state: tuple[dict[str, Any], list[str]]) -> None:
    values, locks = state
    obj.__dict__.update(values)
    for name in locks:
        obj.__dict__[name] = threading.Lock()


def _reduce_web_app_part(obj: Any, kind: type) -> Any:
    """Reduce two kinds of object inside FastAPI apps that plain pickle stumbles over.

    Starlette's `State` answers every attribute name, `__setstate__` too, and recurses; some of
    FastAPI's routers hold a lock, which each copy needs for itself.
    """
    module = kind.__module__
    if module == "starlette.datastructures" and kind.__name__ == "State":
        return copyreg.__newobj__, (kind,), obj.__dict__, None, None, _set_state  # type: ignore[attr-defined]
    if module.startswith("fastapi."):
        state = getattr(obj, "__dict__", None)
        locks = [k for k, v in state.items() if type(v) is _LOCK] if state else []
        if state and locks:
            rest = {k: v for k, v in state.items() if k not in locks}
            new = copyreg.__newobj__  # type: ignore[attr-defined]
            return new, (kind,), (rest, locks), None, None, _set_state_with_locks
    return None


# ------------------------------------------------------------------ by reference or by value


def deployed_reference(
    obj: Any, is_known: Callable[[types.ModuleType], bool] | None = None
) -> tuple[str, str] | None:
    """Say where a replica finds a class or function that `@deployment` hides; None: nowhere."""
    is_known = is_known or is_importable
    module_name = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", "")
    module = sys.modules.get(module_name or "")
    if module is None or module_name in (None, "__main__") or "<locals>" in name:
        return None
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        return None
    if isinstance(found, Deployment) and found.func_or_class is obj and is_known(module):
        return module.__name__, name
    return None


def load_deployed(module_name: str, name: str) -> Callable[..., Any]:
    """Import what `deployed_reference` named. Runs in a replica."""
    found = operator.attrgetter(name)(importlib.import_module(module_name))
    return found.func_or_class if isinstance(found, Deployment) else found


def is_installed(module: types.ModuleType) -> bool:
    """Say whether every process of the instance has this module, wherever it imports from."""
    name = module.__name__
    if name == "__main__":
        return False
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "remora":
        return True
    origin = getattr(module, "__file__", None)
    return origin is not None and str(Path(origin).resolve()).startswith(_INSTALLED)


def is_importable(module: types.ModuleType) -> bool:
    """Say whether a fresh process with our `sys.path` would import this very module."""
    name = module.__name__
    if name.partition(".")[0] in sys.stdlib_module_names:
        return name != "__main__"
    origin = getattr(module, "__file__", None)
    if origin is not None and str(origin).startswith(_INSTALLED):
        return True
    parent_name, _, _ = name.rpartition(".")
    search_path = None
    if parent_name:
        parent = sys.modules.get(parent_name)
        if parent is None or not is_importable(parent):
            return False
        search_path = getattr(parent, "__path__", None)
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, search_path) if find is not None else None
        if spec is not None:
            return spec.origin in (origin, None) or spec.origin == "built-in"
    return False


# --------------------------------------------------------------------- what is to blame


def _culprit(obj: Any, replace: Replace, depth: int) -> tuple[list[str], Exception] | None:
    """Find the innermost part that cannot be pickled, with the way to it; None: all can."""
    try:
        _dumps(_Bound((obj,)), replace)
    except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
        if depth < _MAX_DEPTH:
            for name, part in _parts(obj):
                if (found := _culprit(part, replace, depth + 1)) is not None:
                    return [name, *found[0]], found[1]
        return [f"{obj!r:.120}"], error
    return None


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, (staticmethod, classmethod)):
        obj = obj.__func__
    if isinstance(obj, types.FunctionType):
        yield from _parts_of_function(obj)
    elif isinstance(obj, types.MethodType):
        yield "self", obj.__self__
    elif isinstance(obj, dict):
        yield from ((f"[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", value) for i, value in enumerate(obj))
    elif isinstance(obj, type):
        for name, value in vars(obj).items():
            if name not in ("__dict__", "__weakref__"):
                kind = "method" if callable(value) else "class attribute"
                yield f"{kind} {obj.__qualname__}.{name}", value
    else:
        for name, value in getattr(obj, "__dict__", {}).items():
            yield f"attribute {name!r} of {type(obj).__qualname__}", value


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"variable {name!r} of the enclosing function", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in sorted(_names_in(function.__code__)):
        if name in function.__globals__:
            yield f"global variable {name!r}", function.__globals__[name]
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "a default value", value


def _names_in(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
