"""Answers as object references of Ray, for programs in one of its clusters."""

from __future__ import annotations

import sys
from typing import Any, NoReturn


def put(value: Any) -> Any:
    """Keep a value in Ray's object store; return the reference."""
    from remora.engine.ray import near

    return near.put(value)


def _is_in_cluster() -> bool:
    from remora.engine.ray.default_cluster import is_named

    if "ray" not in sys.modules:
        return is_named()
    from remora.engine.ray.near import is_joined

    return is_joined()


def require_ray() -> None:
    """See that this program is in a cluster of Ray; asked for an object, Ray would start one.

    Raises:
        RuntimeError: it is not.
    """
    if not _is_in_cluster():
        raise RuntimeError(
            "Object references belong to Ray, and this program is in no Ray cluster. Pass the response "
            "itself to the next call: its value goes on without being opened."
        )


def refuse_for_stream() -> NoReturn:
    """A stream has none.

    Raises:
        RuntimeError: always.
    """
    require_ray()
    raise RuntimeError(
        "A stream has no object references: iterate over it, and put its items with ray.put()."
    )
