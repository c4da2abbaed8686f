"""Runs a user's `__del__` once, when we say so, and keeps Python from running it again.

Python runs `__del__` when it collects an object. What has been told to end already must not be
told twice: a destructor that frees memory or closes a connection may not survive that.

Rules: the class of the object is changed, once; its other objects keep their destructor.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

from remora.errors import USER_ERRORS

#: Attribute of a class whose `__del__` is guarded.
_GUARD = "__remora_guard__"


def has_destructor(target: object) -> bool:
    """Whether the class of `target` has a `__del__`."""
    return hasattr(type(target), "__del__")


async def destroy(target: object) -> None:
    """Run the `__del__` of `target`, if there is one, for the only time.

    A coroutine is awaited; a plain one runs in a thread, so that freeing takes as long as it may.

    Raises:
        Exception: whatever it raises.
    """
    if not has_destructor(target):
        return
    destructor = _take(target)
    if destructor is None:
        return
    if inspect.iscoroutinefunction(destructor):
        await destructor()
        return
    failure, result = await asyncio.to_thread(_run, destructor)
    if failure is not None:
        raise failure
    if inspect.isawaitable(result):
        await result


def _run(destructor: Any) -> tuple[BaseException | None, Any]:
    """Exceptions are returned: StopIteration cannot cross a future."""
    try:
        return None, destructor()
    except USER_ERRORS as error:  # Border: user code.
        return error, None


class _Guard:
    """Takes the place of a class's `__del__`, and passes by objects that had theirs."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.spent: set[int] = set()

    def as_method(self) -> Callable[[Any], Any]:
        """What Python runs at garbage collection."""

        def destructor(target: Any) -> Any:
            if id(target) in self.spent:
                self.spent.discard(id(target))
                return None
            return self.original(target)

        return destructor


def _take(target: object) -> Any:
    """Return the destructor of `target`, ready to be called, and disarm it for later; None: it was.

    Python looks `__del__` up on the class, so it is the class that has to know.
    """
    cls: Any = type(target)
    guard: _Guard | None = vars(cls).get(_GUARD)
    if guard is None:
        guard = _Guard(cls.__del__)
        try:
            cls.__del__ = guard.as_method()
            setattr(cls, _GUARD, guard)
        except TypeError:
            return cls.__del__.__get__(target)  # Of an extension: nobody can change it.
    if id(target) in guard.spent:
        return None
    guard.spent.add(id(target))
    return functools.partial(guard.original, target)
