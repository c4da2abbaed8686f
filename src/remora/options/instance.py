"""What runs the processes of an instance, and where its REST API listens."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import nearest, require_number, require_text, struct_of
from remora.options.http import ProxyLocation, proxy_location
from remora.options.node import PLAIN, NodeOptions, node_options

#: Where the cluster of an instance is that is about to be started; commands about one that runs
#: look into the state folder alone.
ADDRESS_VARIABLE = "REMORA_ADDRESS"


class AdminOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the REST API listens, beside the Unix socket in the state folder."""

    #: Address; None: the Unix socket only. One that others reach needs the instance's token.
    host: str | None = "127.0.0.1"
    #: Port, 0..65535; 0: the kernel picks a free one. The default is left to whoever has it.
    port: int = 8265

    def __post_init__(self) -> None:
        require_text("admin_options['host']", self.host, "an address, or None")
        require_number("admin_options['port']", self.port, low=0, high=65535, whole=True)


ADMIN = AdminOptions()


def admin_options(given: AdminOptions | dict[str, Any] | None) -> AdminOptions:
    """Turn what a user passes as `admin_options` into the struct.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    return struct_of(AdminOptions, "admin_options", given)


_WORDS = ("auto", "local")


def require_address(field: str, address: str) -> None:
    """See that the address of a Ray cluster can be one.

    Raises:
        ConfigError: it has none of the forms.
    """
    if not address or address in _WORDS:
        return
    if "://" in address:
        raise ConfigError(
            field,
            address,
            "no instance is started over Ray Client: run this on a machine of the cluster, with the "
            "address of its head (host:port) or 'auto'",
        )
    host, _, port = address.rpartition(":")
    if not (host.strip("[]") and " " not in host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(
            field,
            address,
            "write host:port of the cluster's head (10.0.0.5:6379), 'auto' for the cluster of this "
            f"machine, or 'local' for a new one.{nearest(address, _WORDS)}",
        )


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs the processes of an instance."""

    #: `local`: this machine, by Remora itself; `ray`: a Ray cluster.
    engine: str = "local"
    #: Of the Ray cluster: `host:port`; `auto`: the one of this machine; `local`: a new one that
    #: ends with the instance; empty: the one of this machine if there is one, else a new one.
    address: str = ""
    #: On which nodes of the cluster proxies run.
    proxy_location: str = "EveryNode"
    #: Of connections between nodes.
    node: NodeOptions = PLAIN

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray"):
            raise ConfigError("engine", self.engine, "must be 'local' or 'ray'")
        if self.address and self.engine != "ray":
            raise ConfigError("address", self.address, "is of a Ray cluster and needs engine='ray'")
        require_address("address", self.address)
        if self.node and self.engine != "ray":
            raise ConfigError(
                "node_options", self.node, "is for several nodes and needs engine='ray'"
            )


LOCAL_ENGINE = EngineOptions()


def engine_options(
    engine: str | None = None,
    address: str | None = None,
    location: str | ProxyLocation | None = None,
    node: NodeOptions | dict[str, Any] | None = None,
) -> EngineOptions:
    """Make the options from what a user says; the environment variable `REMORA_ADDRESS` may add.

    Args:
        engine: `local` or `ray`; None: Ray if there is an address of a cluster.
        address: see `EngineOptions`; None: as the environment says.
        location: of proxies; None: every node.
        node: of connections between nodes; None: plain TCP.

    Raises:
        ConfigError: no such engine, no such address, or what is of a cluster without Ray.
    """
    if address is None and engine != "local":
        address = os.environ.get(ADDRESS_VARIABLE, "")
        require_address(ADDRESS_VARIABLE, address)
    chosen = engine or ("ray" if address else "local")
    where = proxy_location(location)
    return EngineOptions(
        engine=chosen,
        address=address or "",
        proxy_location=where.value,
        node=node_options(node).absolute(),
    )
