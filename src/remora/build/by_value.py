"""What users name by an import path, or give as it is, and what travels by value to other processes.

Those have neither the application's import path nor, after an edit, the right version of its
modules in memory.
"""

from __future__ import annotations

import importlib
import operator
from typing import Any

from remora.errors import ConfigError

#: It is stored, and everybody who needs it holds it.
MAX_CODE_BYTES = 4 * 1024 * 1024


def imported(given: Any, field: str) -> Any:
    """Import what text names, `module:name` or `module.name`; what is no text is it already.

    Raises:
        ConfigError: there is no such thing.
    """
    if not isinstance(given, str):
        return given
    module_name, _, name = given.partition(":") if ":" in given else given.rpartition(".")
    try:
        return operator.attrgetter(name)(importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise ConfigError(field, given, f"it cannot be imported: {error}") from error


def dumped(found: Any, field: str, name: str, *, what: str, travels: str) -> bytes:
    """Pickle something by value.

    Args:
        found: a function, a class or an object.
        field: which option it was given for.
        name: its own.
        what: it is, for people.
        travels: to whom, and how to make it smaller.

    Raises:
        ConfigError: it is too large.
        CodeNotPicklableError: it cannot travel.
    """
    from remora.build.pickling import dumps_by_value

    code = dumps_by_value(found, what)
    if len(code) > MAX_CODE_BYTES:
        raise ConfigError(
            field,
            name,
            f"with what it uses it takes {len(code)} bytes, and at most {MAX_CODE_BYTES} {travels}",
        )
    return code
