"""What the other end of a client's socket is, and what can be seen of it without reading."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import termios
from typing import Any

#: States of a TCP connection whose other side sends no more.
_LEFT = (7, 8)  # TCP_CLOSE, TCP_CLOSE_WAIT
_CLOSED = (7,)


def host_and_port(address: Any) -> tuple[str, int] | None:
    """An IP address as ASGI wants it; None for Unix sockets."""
    if isinstance(address, tuple) and len(address) >= 2:
        return str(address[0]), int(address[1])
    return None


def shown(address: tuple[str, int] | None) -> str:
    """An address as people write it."""
    if address is None:
        return "a Unix socket"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has closed its side, also when what it sent before is not read yet."""
    return _state_of(transport) in _LEFT


def is_closed(transport: asyncio.Transport) -> bool:
    """Whether the client has reset the connection: nothing can be sent to it any more."""
    return _state_of(transport) in _CLOSED


def is_plain_tcp(transport: asyncio.Transport) -> bool:
    """Whether the two directions end one by one, and the kernel can be asked about them."""
    return transport.get_extra_info("sslcontext") is None and _state_of(transport) != 0


def _state_of(transport: asyncio.Transport) -> int:
    """The state of a TCP connection; 0: it is none."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state


def has_unread(transport: asyncio.Transport) -> bool:
    """Whether the client has sent what the loop has not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    return any(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
