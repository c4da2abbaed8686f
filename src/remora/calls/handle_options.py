"""The options of a handle: which there are, and what is checked of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from remora.config import UNSET, nearest, require_number
from remora.errors import ConfigError
from remora.wire.values import FORMATS

_OPTIONS = (
    "method_name",
    "multiplexed_model_id",
    "request_serialization",
    "response_serialization",
    "session_id",
    "stream",
    "timeout_s",
)
#: Accepted because Ray Serve's users pass them; each has only one meaning here.
_NEUTRAL = ("_by_reference", "_prefer_local_routing", "_run_router_in_separate_loop")


def merged(state: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Put options over those that a handle has.

    Args:
        state: those that it has; it is changed.
        options: as `options()` was given them.

    Raises:
        TypeError: unknown option, or a text option that is no text.
        ConfigError: a value that cannot be right.
    """
    for name, value in options.items():
        if name in _NEUTRAL:
            continue
        if name not in _OPTIONS:
            raise TypeError(
                f"options() got an unexpected keyword argument {name!r}.{nearest(name, _OPTIONS)}"
            )
        if value is not UNSET:
            state[name] = _checked(name, value)
    return state


def require_neutral(names: Iterable[str]) -> None:
    """See that these are arguments of Ray Serve's `_init` that need nothing here.

    Raises:
        TypeError: one is not.
    """
    for name in names:
        if name not in _NEUTRAL:
            raise TypeError(
                f"_init() got an unexpected keyword argument {name!r}.{nearest(name, _NEUTRAL)}"
            )


def _checked(name: str, value: Any) -> Any:
    if name == "timeout_s":
        require_number(name, value, above=0, or_none=True)
        return value
    if name == "stream":
        if not isinstance(value, bool):
            raise TypeError(f"stream must be a bool, not {type(value).__name__} ({value!r})")
        return value
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__} ({value!r})")
    if name == "method_name" and not value:
        raise ConfigError(name, value, "must not be empty")
    if name.endswith("_serialization"):
        if value not in FORMATS:
            raise ConfigError(name, value, f"one of {', '.join(FORMATS)}")
        # The first is what travels anyway.
        return "" if value == FORMATS[0] else value
    # A text of another class, as numpy has one, is none that travels.
    return str.__str__(value)
