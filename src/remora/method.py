"""`@method(...)`: what a method of a deployment promises to those who call it.

The decorator returns the very function that it was given, so that type checkers, FastAPI and
plain Python see what they saw before; the promise is an attribute of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from remora.config import check_keywords

_F = TypeVar("_F", bound=Callable[..., Any])

#: The attribute of a marked function.
IDEMPOTENT_MARK = "__remora_idempotent__"


@overload
def method() -> Callable[[_F], _F]: ...
@overload
def method(*, idempotent: bool) -> Callable[[_F], _F]: ...
def method(*misplaced: Any, idempotent: bool = False, **unknown: Any) -> Any:
    """Say what callers of this method may rely on.

    Args:
        idempotent: calling it twice does no harm: a call whose replica died is made again on
            another one, as long as nothing of its answer has arrived. On a FastAPI route the same
            holds for its requests.
        misplaced: refused; `@method` takes its options by name, in parentheses.
        unknown: refused.

    Raises:
        TypeError: not a bool, an unknown option, no parentheses, or what is decorated is no
            function.
    """
    check_keywords("method()", unknown, ("idempotent",))
    if misplaced:
        raise TypeError(
            f"@method needs parentheses and says what it promises: write "
            f"@method(idempotent=True) above the method, not @method alone (got {misplaced[0]!r})"
        )
    if not isinstance(idempotent, bool):
        raise TypeError(
            f"method(idempotent=...) must be a bool, not {type(idempotent).__name__} "
            f"({idempotent!r}); write @method(idempotent=True) above the method"
        )

    def mark(function: _F) -> _F:
        given: object = function  # whatever the caller really passed
        if not callable(given) or inspect.isclass(given):
            raise TypeError(
                f"@method goes on a function or method, not on {function!r}; for a whole "
                "deployment there is @deployment(idempotent=True)"
            )
        setattr(function, IDEMPOTENT_MARK, idempotent)
        return function

    return mark


def is_idempotent(function: object) -> bool:
    """Whether a function, or what a `staticmethod` holds, is marked. Pure."""
    inner = getattr(function, "__func__", function)
    return getattr(inner, IDEMPOTENT_MARK, False) is True


def idempotent_methods(func_or_class: Callable[..., Any]) -> tuple[str, ...]:
    """Name the methods of a deployment that may be called twice, in order. Pure.

    What a subclass overrides counts as it is written there.
    """
    if not inspect.isclass(func_or_class):
        return ("__call__",) if is_idempotent(func_or_class) else ()
    return tuple(
        name
        for name in sorted(dir(func_or_class))
        if is_idempotent(inspect.getattr_static(func_or_class, name, None))
    )
