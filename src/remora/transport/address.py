"""Addresses as text.

unix:<path>                                       on this machine
tcp:<host>:<port>                                 anywhere
node:<node id>,unix:<path>,tcp:<host>:<port>      the first on that node, the second elsewhere
"""

from __future__ import annotations

from typing import NamedTuple

from remora.errors import ConfigError


class Address(NamedTuple):
    """Where a process listens: a Unix socket's path, or a host and a port."""

    path: str | None
    host: str
    port: int


def on_node(node_id: str, path: str, host: str, port: int) -> str:
    """Write the address of a process that listens for its own node and for others. Pure.

    Args:
        node_id: of its node; no comma in it.
        path: of its Unix socket.
        host: of its TCP socket.
        port: of its TCP socket.
    """
    return f"node:{node_id},unix:{path},tcp:{host}:{port}"


def parse(address: str, here: str = "") -> Address:
    """Read an address. Pure.

    Args:
        address: one of the three forms.
        here: id of the node that asks.

    Raises:
        ConfigError: it has none of the forms.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return Address(rest, "", 0)
    if scheme == "node":
        node_id, _, both = rest.partition(",")
        # A path may hold commas, what follows it cannot.
        near, _, far = both.rpartition(",")
        if near.startswith("unix:") and far.startswith("tcp:"):
            return parse(near if node_id == here else far)
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdigit():
        return Address(None, host.strip("[]"), int(port))
    raise ConfigError(
        "address",
        address,
        "write unix:<path>, tcp:<host>:<port> or node:<id>,unix:<path>,tcp:<host>:<port>",
    )
