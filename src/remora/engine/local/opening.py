"""What a supervisor takes before it starts anything: the state folder and the listening sockets.

Rules: standard library and the lowest layer of the package only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remora.engine.boot import InstanceOptions, read_grpc
from remora.engine.claim import Claim, Owner, folder_error
from remora.engine.doors import (
    ADMIN_DOOR,
    ADMIN_PORT,
    address_of,
    http_url,
    listen_http,
    listen_unix,
    reserve_grpc,
)
from remora.errors import InstanceError
from remora.home import Home


@dataclass(frozen=True)
class Opened:
    """What is taken.

    Attributes:
        claim: on the folder.
        sockets: by name.
        grpc: the setup for gRPC as JSON knows it, with the port that was found; None: no gRPC.
        owner: what the folder says of this instance.
    """

    claim: Claim
    sockets: dict[str, socket.socket]
    grpc: dict[str, Any] | None
    owner: Owner


def open_instance(options: InstanceOptions, token: str, log: Callable[[str], None]) -> Opened:
    """Claim the folder and open the sockets.

    Args:
        options: of the instance.
        token: marks its processes.
        log: told what an earlier instance had left.

    Raises:
        InstanceError: says what is in the way.
    """
    home = Home(Path(options.home))
    claim = Claim.take(home)
    try:
        return _opened(options, token, log, claim)
    except InstanceError:
        claim.leave()
        raise


def _opened(
    options: InstanceOptions, token: str, log: Callable[[str], None], claim: Claim
) -> Opened:
    bound = options.owner_fd is not None
    # Written before anything is started: whoever comes after a crash finds what to clean up.
    found = claim.clean()
    claim.write_owner(Owner(os.getpid(), token, "", bound))
    for line in found:
        log(f"removed {line}")
    grpc = read_grpc(options.grpc_fd)
    sockets = _sockets(options, claim.home, grpc)
    owner = Owner(
        os.getpid(),
        token,
        http_url(sockets.get("http"), options.http),
        bound,
        grpc_address=address_of(sockets.get("grpc")),
        grpc_digest=options.grpc_digest,
    )
    claim.write_owner(owner)
    return Opened(claim, sockets, grpc, owner)


def _sockets(
    options: InstanceOptions, home: Home, grpc: dict[str, Any] | None
) -> dict[str, socket.socket]:
    sockets = {}
    host = options.http.get("host")
    if host is not None:
        sockets["http"] = listen_http(str(host), int(options.http["port"]))
    if grpc is not None:
        sockets["grpc"] = reserve_grpc(grpc["host"], grpc["port"])
        # What was found: every proxy opens the same.
        grpc["host"], grpc["port"] = sockets["grpc"].getsockname()[:2]
    try:
        sockets["control"] = listen_unix(home.controller_socket)
        sockets["supervisor"] = listen_unix(home.supervisor_socket)
        sockets["admin_unix"] = listen_unix(home.admin_socket)
    except OSError as error:
        raise folder_error(home, error) from None
    if (admin := _listen_admin(options.admin)) is not None:
        sockets["admin"] = admin
    return sockets


def _listen_admin(admin: Mapping[str, Any]) -> socket.socket | None:
    """Listen for the REST API; None: it has only its Unix socket.

    Raises:
        InstanceError: the address was asked for, and cannot be listened on.
    """
    host = admin.get("host")
    if host is None:
        return None
    try:
        return listen_http(str(host), int(admin["port"]), ADMIN_DOOR)
    except InstanceError:
        if host == "127.0.0.1" and admin["port"] == ADMIN_PORT:
            # Nobody chose it, and another instance, or Ray, may have it.
            return None
        raise
