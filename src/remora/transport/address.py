"""Addresses as text: `unix:<path>` or `tcp:<host>:<port>`."""

from __future__ import annotations

from typing import NamedTuple

from remora.errors import ConfigError


class Address(NamedTuple):
    """Where a process listens: a Unix socket's path, or a host and a port."""

    path: str | None
    host: str
    port: int


def parse(address: str) -> Address:
    """Read an address.

    Raises:
        ConfigError: it is neither form.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return Address(rest, "", 0)
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdigit():
        return Address(None, host.strip("[]"), int(port))
    raise ConfigError("address", address, "write unix:<path> or tcp:<host>:<port>")
