"""Checks of what users give: each says which value is wrong, and which name was probably meant.

Rules: pure; knows no option.
"""

from __future__ import annotations

import difflib
import json
import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from remora.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Say which allowed name was probably meant: ` Did you mean …?`, or nothing. Pure."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_keywords(where: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse keywords that do not exist.

    Raises:
        TypeError: as Python itself would, plus the name that was probably meant.
    """
    known = list(allowed)
    for keyword in given:
        if keyword not in known:
            raise TypeError(
                f"{where} got an unexpected keyword argument {keyword!r}.{nearest(keyword, known)}"
            )


def check_keys(field: str, value: dict[str, Any], allowed: Iterable[str]) -> None:
    """Refuse keys that nobody reads.

    Raises:
        ConfigError: names the first unknown key and the one that was probably meant.
    """
    known = sorted(allowed)
    for key, item in value.items():
        if key not in known:
            hint = nearest(str(key), known)
            raise ConfigError(
                f"{field}[{key!r}]", item, f"no such key.{hint} Keys: {', '.join(known)}."
            )


def struct_of(
    kind: type[S], field: str, given: object, *, error: type[TypeError | ConfigError] = TypeError
) -> S:
    """Turn what a user passes for a group of options into its struct.

    Args:
        kind: the struct.
        field: what users call the group.
        given: the struct, its fields by name, or nothing.
        error: what is raised for something else.

    Raises:
        TypeError: it is something else.
        ConfigError: an unknown name, or a value that cannot be right.
    """
    if isinstance(given, kind):
        return given
    options = {} if given is None else given
    if not isinstance(options, dict):
        allowed = f"must be a dict or {kind.__name__}"
        if error is ConfigError:
            raise ConfigError(field, given, allowed)
        raise TypeError(f"{field} {allowed}, not {type(given).__name__}")
    check_keys(field, options, kind.__struct_fields__)
    required = [each.name for each in msgspec.structs.fields(kind) if each.required]
    if missing := [name for name in required if name not in options]:
        raise ConfigError(field, given, f"needs {' and '.join(missing)}")
    return kind(**options)


def require_text(field: str, value: object, allowed: str) -> None:
    """Refuse what is neither a text that is not empty, nor None.

    Raises:
        ConfigError: says what is allowed.
    """
    if value is not None and not (isinstance(value, str) and value):
        raise ConfigError(field, value, allowed)


def require_flag(field: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ConfigError: it is none of them.
    """
    if not isinstance(value, bool):
        raise ConfigError(field, value, "must be True or False")


def require_number(
    field: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    whole: bool = False,
    or_none: bool = False,
) -> None:
    """Check that a value is a number in range.

    Args:
        field: name of the option, for the message.
        value: what the user gave.
        low: smallest allowed value.
        high: largest allowed value.
        above: the value must be greater than this.
        whole: True: must be an `int`.
        or_none: None is allowed as well.

    Raises:
        ConfigError: it is not.
    """
    if value is None and or_none:
        return
    allowed = ["a whole number" if whole else "a number"]
    allowed += [f">= {low:g}"] if low > -math.inf else []
    allowed += [f"> {above:g}"] if above > -math.inf else []
    allowed += [f"<= {high:g}"] if high < math.inf else []
    # Those of numpy are of these types, too.
    types = numbers.Integral if whole else numbers.Real
    # A bool is an int for Python, but nobody means `num_replicas=True`.
    number: Any = value
    is_number = isinstance(value, types) and not isinstance(value, bool)
    # Of no use with nan: that is in no range.
    if not is_number or not (low <= number <= high and number > above):
        raise ConfigError(field, value, f"must be {' and '.join(allowed)}")


def require_json(field: str, value: object) -> None:
    """Check that a value can be written as JSON.

    Raises:
        ConfigError: it cannot, with the reason.
    """
    try:
        json.dumps(value)
        # What travels has numbers of 64 bits; classes of others are seen to where it is written.
        msgspec.msgpack.encode(value, enc_hook=lambda _: None)
        _require_plain_keys(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(field, value, f"must be a JSON value ({error})") from None


def _require_plain_keys(value: object) -> None:
    """Refuse None, True and False as keys: `json` alone makes texts of them, msgspec does not."""
    if isinstance(value, dict):
        for key in value:
            if key is None or isinstance(key, bool):
                raise TypeError(f"a key must be a text or a number, not {key}")
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for each in value:
        _require_plain_keys(each)


def is_import_path(text: str) -> bool:
    """Say whether a text can be `module:Name` or `module.Name`. Pure."""
    parts = text.replace(":", ".", 1).split(".")
    # The last is how Python names a class that was defined in a function.
    return len(parts) > 1 and all(p.isidentifier() or p == "<locals>" for p in parts)


class Named(msgspec.StructMeta):
    """Says which keyword was probably meant where one does not exist."""

    def __call__(cls, *args: Any, **given: Any) -> Any:  # noqa: N805 - a metaclass
        """Make an instance.

        Raises:
            TypeError: a keyword does not exist.
        """
        check_keywords(cls.__name__, given, cls.__struct_fields__)
        return super().__call__(*args, **given)
