"""From the setup in a snapshot to a policy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from remora.config import PolicySetup, nearest
from remora.core.routing import Policy
from remora.errors import ConfigError
from remora.transport.membership import mine

#: What `PolicySetup.name` says of a class that users wrote.
CUSTOM = "custom"
#: Module below `core/routing`, class, and the arguments that it takes. A process imports those
#: that its deployments use.
_BUILT_IN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "power_of_two": ("power_of_two", "PowerOfTwo", ()),
    "round_robin": ("round_robin", "RoundRobin", ()),
    "consistent_hash": (
        "consistent_hash",
        "ConsistentHash",
        ("load_factor", "num_fallback_replicas", "num_virtual_nodes"),
    ),
    "capacity_queue": ("most_room", "MostRoom", ()),
}
#: Those that prefer replicas on the caller's node.
_BY_NEARNESS = frozenset({"power_of_two"})


def built_in(setup: PolicySetup) -> Policy[Any]:
    """Make one of our own policies, with fresh state.

    Raises:
        ConfigError: it does not take these arguments.
        KeyError: there is no such policy.
    """
    module, name, allowed = _BUILT_IN[setup.name]
    for key, value in setup.kwargs.items():
        if key not in allowed:
            raise ConfigError(
                f"request_router_kwargs[{key!r}]",
                value,
                f"the router takes {', '.join(allowed) or 'none'}.{nearest(key, allowed)}",
            )
    make = getattr(import_module(f"remora.core.routing.{module}"), name)
    kwargs = dict(setup.kwargs)
    here = mine()
    if here.node_id and setup.name in _BY_NEARNESS:
        kwargs |= {"node_id": here.node_id, "availability_zone": here.zone}
    policy: Policy[Any] = make(**kwargs)
    return policy
