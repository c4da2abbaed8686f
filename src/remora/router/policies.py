"""From the setup in a snapshot to a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remora.config import PolicySetup, nearest
from remora.core.routing import Policy
from remora.core.routing.consistent_hash import ConsistentHash
from remora.core.routing.most_room import MostRoom
from remora.core.routing.power_of_two import PowerOfTwo
from remora.core.routing.round_robin import RoundRobin
from remora.errors import ConfigError

#: What `PolicySetup.name` says of a class that users wrote.
CUSTOM = "custom"
_BUILT_IN: dict[str, tuple[Callable[..., Policy[Any]], tuple[str, ...]]] = {
    "power_of_two": (PowerOfTwo, ()),
    "round_robin": (RoundRobin, ()),
    "consistent_hash": (
        ConsistentHash,
        ("load_factor", "num_fallback_replicas", "num_virtual_nodes"),
    ),
    "capacity_queue": (MostRoom, ()),
}


def built_in(setup: PolicySetup) -> Policy[Any]:
    """Make one of our own policies, with fresh state.

    Raises:
        ConfigError: it does not take these arguments.
        KeyError: there is no such policy.
    """
    make, allowed = _BUILT_IN[setup.name]
    for key, value in setup.kwargs.items():
        if key not in allowed:
            raise ConfigError(
                f"request_router_kwargs[{key!r}]",
                value,
                f"the router takes {', '.join(allowed) or 'none'}.{nearest(key, allowed)}",
            )
    return make(**setup.kwargs)
