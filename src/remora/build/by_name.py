"""Objects that travel by name, as functions do: who opens the pickle imports them.

What a decorator puts in the place of a function (`@batch`, `@multiplexed`) is found under the name
of that function. By value, it would take the function along with everything that its module
holds: locks, connections, models.
"""

from __future__ import annotations

import operator
import sys
from abc import abstractmethod
from typing import Any


class ByName:
    """Travels by name where other processes find it under that, otherwise by value."""

    @abstractmethod
    def _by_value(self) -> tuple[Any, ...]:
        """What `__reduce__` returns when there is no name."""

    def __reduce__(self) -> str | tuple[Any, ...]:
        return name_of(self) or self._by_value()


def name_of(target: Any) -> str | None:
    """The name of `target` in its module; None: it has none, or other processes lack the module."""
    module = sys.modules.get(target.__module__)
    if module is None or module.__name__ == "__main__" or _travels_by_value(module.__name__):
        return None
    name: str = target.__qualname__
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        return None
    return name if found is target else None


def _travels_by_value(module_name: str) -> bool:
    """Whether cloudpickle was told to send what this module defines."""
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False
    registered: set[str] = cloudpickle.list_registry_pickle_by_value()
    parts = module_name.split(".")
    return any(".".join(parts[:end]) in registered for end in range(1, len(parts) + 1))
