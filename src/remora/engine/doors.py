"""The listening sockets of a node: the front doors, and those between its own processes.

Everything that can be wrong with an address or a port is found here, before any process is
started, and said in one sentence that ends with what to do.

Rules: standard library and the lowest layer of the package only; the supervisor imports this.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from remora.engine import linux
from remora.errors import InstanceError

#: Connections that wait in the kernel while a proxy restarts. The kernel lowers it to its own
#: limit (`net.core.somaxconn`, 4096 on current kernels).
_HTTP_BACKLOG = 4096
#: The same for connections between our own processes.
BACKLOG = 1024


def listen_unix(path: Path, backlog: int = BACKLOG) -> socket.socket:
    """Listen on a Unix socket; a file that an earlier process left there is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


class _Door(NamedTuple):
    """How a user sets where a front door listens."""

    host: str
    port: str
    options: str


_HTTP = _Door("--host", "--port", "http_options")
_GRPC = _Door("--host", "--grpc-port", "grpc_options")
ADMIN_DOOR = _Door("--admin-host", "--admin-port", "admin_options")
#: Of the REST API, unless somebody chooses another one; Ray's users and their tools know it.
ADMIN_PORT = 8265


def listen_http(host: str, port: int, door: _Door = _HTTP) -> socket.socket:
    """Listen for HTTP.

    Raises:
        InstanceError: the address cannot be listened on; says why and what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise _host_error(host, port, error, door) from None
    try:
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _host_error(host, port, error, door) from None
    try:
        # A port that an earlier instance has just left is usable at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_HTTP_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise _address_error(host, port, error, door) from None
    return listener


def reserve_grpc(host: str, port: int) -> socket.socket:
    """Keep a port for the proxies, which open it themselves: gRPC's library takes no socket.

    The socket is bound and does not listen. Those of the proxies share its port (`SO_REUSEPORT`);
    what shares no port finds it taken, also while the proxies restart.

    Raises:
        InstanceError: the address cannot be listened on; says why and what to do.
    """
    # One that shares nothing finds out whether the port is taken, by another instance as well.
    probe = listen_http(host, port, _GRPC)
    where = probe.getsockname()
    probe.close()
    reserved = socket.socket(probe.family)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            reserved.bind(where)
        except OSError:
            # Connections of an earlier server still fade out there.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(where)
    except OSError as error:
        reserved.close()
        raise _address_error(host, where[1], error, _GRPC) from None
    return reserved


def address_of(sock: socket.socket | None) -> str:
    """`host:port` that reaches a socket from this machine; empty without one."""
    if sock is None:
        return ""
    name: Any = sock.getsockname()
    host, port = str(name[0]), int(name[1])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_error(host: str, port: int, error: Exception, door: _Door) -> InstanceError:
    return InstanceError(
        f"Cannot listen on {host}:{port}: {error}. Name an address of this machine with "
        f"{door.host} ({door.options} host=...): 127.0.0.1 for this machine alone, 0.0.0.0 for every network."
    )


def _address_error(host: str, port: int, error: Exception, door: _Door = _HTTP) -> InstanceError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        owner = linux.listener_on(port)
        return InstanceError(
            f"Cannot listen on {host}:{port}: the port is in use{f' by {owner}' if owner else ''}. "
            f"Choose another one with {door.port} ({door.options} port=...; 0 picks a free one), "
            "or stop that process."
        )
    if number in (errno.EACCES, errno.EPERM):
        return InstanceError(
            f"Cannot listen on {host}:{port}: this user may not use that port. Choose one of "
            f"1024 or higher with {door.port} ({door.options} port=...)."
        )
    if isinstance(error, OverflowError):
        return InstanceError(f"Cannot listen on {host}:{port}: a port is a number from 0 to 65535.")
    return _host_error(host, port, error, door)


def http_url(listener: socket.socket | None, http: Mapping[str, Any]) -> str:
    """Return a URL that opens the front door; empty without one.

    Args:
        listener: its socket; None: there is none.
        http: the user's options, which may name the URL that others reach it by.
    """
    if listener is None:
        return ""
    if http.get("root_url"):
        return str(http["root_url"]).rstrip("/")
    scheme = "https" if http.get("ssl_certfile") else "http"
    return f"{scheme}://{address_of(listener)}"


def default_num_proxies(cores: int) -> int:
    """Say how many proxies a machine gets that nobody has chosen a number for. Pure.

    One proxy serves tens of thousands of requests per second, about as many as one replica can
    answer that does nothing; whatever does more needs several cores of replicas for each proxy.
    An idle proxy costs 14 MB, which is why there are never more than four of them unasked.
    """
    return max(1, min(4, cores // 4))
