"""How addresses are written and read."""

from __future__ import annotations

import pytest

from remora.errors import ConfigError
from remora.transport.address import Address, on_node, parse


def test_a_process_is_reached_over_its_unix_socket_on_its_own_node() -> None:
    address = on_node("n1", "/tmp/a,b/r1.sock", "10.0.0.7", 4711)
    assert parse(address, "n1") == Address("/tmp/a,b/r1.sock", "", 0)
    assert parse(address, "n2") == Address(None, "10.0.0.7", 4711)
    assert parse(address) == Address(None, "10.0.0.7", 4711)


def test_a_host_may_be_of_ipv6() -> None:
    assert parse(on_node("n1", "/r", "[fe80::1]", 1), "n2") == Address(None, "fe80::1", 1)


@pytest.mark.parametrize(
    "wrong", ["", "unix:", "tcp:host", "tcp::1", "node:n1", "node:n1,tcp:h:1", "node:n1,unix:/a"]
)
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="unix:<path>"):
        parse(wrong, "n1")
