"""`preloaded`: something large that the replicas of a machine load once and share the memory of.

A deployment names it in `preload`: a module, or a function whose result is kept. The engine loads it
in a process that replicas are forked from, so each finds it there, and the kernel keeps one copy
of every page that nobody writes to. Where a process could not be made like that (packages of its
own, another engine, a test), it loads what it asks for itself, once.

Rules: no imports from the rest of the package above this layer; used in the process that loads, in
replicas and in users' scripts.
"""

from __future__ import annotations

import importlib
import operator
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

_T = TypeVar("_T")

#: Results of functions, by `module:function`.
_kept: dict[str, Any] = {}
_lock = threading.RLock()


@overload
def preloaded(what: Callable[[], _T]) -> _T: ...
@overload
def preloaded(what: str) -> Any: ...
def preloaded(what: Callable[[], Any] | str) -> Any:
    """Return what a function of `preload` has made; one that was not called is called now.

    Args:
        what: the function, or `module:function`.

    Raises:
        Exception: what the function raises.
    """
    name = what if isinstance(what, str) else name_of(what)
    with _lock:
        if name not in _kept:
            _kept[name] = (_found(name) if isinstance(what, str) else what)()
        return _kept[name]


def name_of(function: Callable[..., Any]) -> str:
    """Return `module:function`."""
    return f"{function.__module__}:{function.__qualname__}"


def load(names: Iterable[str]) -> None:
    """Import modules, and call functions and keep their results.

    Raises:
        Exception: what one of them raises.
    """
    for name in names:
        if ":" in name:
            preloaded(name)
        else:
            importlib.import_module(name)


def _found(name: str) -> Callable[[], Any]:
    module, _, path = name.partition(":")
    found: Callable[[], Any] = operator.attrgetter(path)(importlib.import_module(module))
    return found
