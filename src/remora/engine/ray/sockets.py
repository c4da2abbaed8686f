"""The sockets that a process of each kind listens on, and how a front door outlives its proxy.

The agent of a node holds the listening sockets of the front doors and hands them to the proxies of
its node over a Unix socket. A proxy that is gone leaves them open there: the kernel keeps new
connections waiting until its successor accepts. The successor of an agent that is gone gets them
back from the proxies, which hold on to it for that, and with them the socket at which processes of
the node look for the controller.
"""

from __future__ import annotations

import array
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from remora.engine.doors import BACKLOG, listen_http, listen_unix, reserve_grpc
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.setup import CONTROLLER_ADDRESS, InstanceSetup, NodeRecord
from remora.home import Home
from remora.transport.address import on_node

_LINE_BYTES = 4096
#: An agent that restarts is back in about a second.
_AGENT_LIMIT_S = 30.0
_BETWEEN_TRIES_S = 0.05


def agent_socket(home: Home) -> Path:
    """Where the agent of a node hands out sockets."""
    return home.sockets / "agent.sock"


def open_sockets(
    kind: str, home: Home, here: RayNode, setup: InstanceSetup, cluster: Cluster
) -> tuple[dict[str, socket.socket], str]:
    """Open what a process of this kind listens on; returns them by name, and its address.

    Raises:
        OSError: one of them cannot be opened.
        InstanceError: a front door cannot be.
    """
    if kind == "proxy":
        return _take_doors(home), ""
    name = "wire" if kind == "replica" else "control"
    path = home.sockets / f"{kind[0]}{os.getpid()}.sock"
    sockets = {name: listen_unix(path), f"{name}_tcp": listen_tcp(here.host)}
    host, port = sockets[f"{name}_tcp"].getsockname()[:2]
    address = on_node(here.node_id, str(path), host, port)
    if kind == "controller":
        cluster.put(CONTROLLER_ADDRESS, address.encode())
    if kind == "agent":
        sockets["doors"] = listen_unix(agent_socket(home))
        # An agent that was there before gets the rest back from the proxies.
        if cluster.get(NodeRecord.key(here.node_id)) is None:
            sockets["relay"] = listen_unix(home.controller_socket)
            sockets |= _open_doors(here, setup)
    return sockets, address


def _open_doors(here: RayNode, setup: InstanceSetup) -> dict[str, socket.socket]:
    """Open the front doors of a node, where there are to be any.

    Raises:
        InstanceError: an address cannot be listened on; says why and what to do.
    """
    if not setup.has_proxies(is_head=here.is_head):
        return {}
    doors = {}
    if setup.http.get("host") is not None:
        doors["http"] = listen_http(str(setup.http["host"]), int(setup.http["port"]))
    if setup.grpc is not None:
        doors["grpc"] = reserve_grpc(setup.grpc["host"], setup.grpc["port"])
    return doors


def listen_tcp(host: str) -> socket.socket:
    """Listen on a free port for peers from other nodes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((host, 0))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


# ----------------------------------------------------------------------------- handing sockets on


def send_sockets(connection: socket.socket, sockets: dict[str, socket.socket]) -> None:
    """Send sockets with their names."""
    line = json.dumps(list(sockets)).encode()
    fds = array.array("i", [sock.fileno() for sock in sockets.values()])
    ancillary: list[Any] = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if sockets else []
    connection.sendmsg([line], ancillary)


def receive_sockets(connection: socket.socket) -> dict[str, socket.socket]:
    """Receive sockets with their names.

    Raises:
        ConnectionError: the other side has closed.
    """
    line, fds, _, _ = socket.recv_fds(connection, _LINE_BYTES, 16)
    if not line:
        raise ConnectionError("the other side has closed")
    return {name: socket.socket(fileno=fd) for name, fd in zip(json.loads(line), fds, strict=True)}


def _take_doors(home: Home) -> dict[str, socket.socket]:
    """Get the front doors from this node's agent, and hold on to it."""
    connection, doors = _ask_for_doors(home)
    keep = {name: sock.dup() for name, sock in doors.items()}
    threading.Thread(target=_hold, args=(home, connection, keep), daemon=True).start()
    doors.pop("relay").close()
    return doors


def _ask_for_doors(home: Home) -> tuple[socket.socket, dict[str, socket.socket]]:
    deadline = time.monotonic() + _AGENT_LIMIT_S
    while True:
        try:
            connection = _reach(home)
            send_sockets(connection, {})
            return connection, receive_sockets(connection)
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BETWEEN_TRIES_S)


def _reach(home: Home) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(agent_socket(home)))
    except OSError:
        connection.close()
        raise
    return connection


def _hold(home: Home, connection: socket.socket, doors: dict[str, socket.socket]) -> None:
    """Give the front doors back to every agent that follows."""
    while True:
        try:
            # It sends nothing more: this returns when it is gone.
            connection.recv(1)
        except OSError:
            pass
        connection.close()
        while True:
            time.sleep(_BETWEEN_TRIES_S)
            try:
                connection = _reach(home)
                send_sockets(connection, doors)
                for spare in receive_sockets(connection).values():
                    spare.close()
                break
            except OSError:
                continue
