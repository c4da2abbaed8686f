"""The sockets that a process of each kind listens on, and how a front door outlives its proxy.

The agent of a node holds the listening sockets of the front doors and of the REST API and hands
them to the proxies of its node, and to the process of that API, over a Unix socket. One of those
that is gone leaves them open there: the kernel keeps new connections waiting until its successor
accepts. The successor of an agent that is gone gets them back from them, who hold on to it for
that, and with them the socket at which processes of the node look for the controller.
"""

from __future__ import annotations

import array
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from remora.engine.base import Workload
from remora.engine.doors import (
    ADMIN_DOOR,
    ADMIN_PORT,
    BACKLOG,
    listen_http,
    listen_unix,
    reserve_grpc,
)
from remora.engine.ray import cluster as rays
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.setup import CONTROLLER_ADDRESS, InstanceSetup, NodeRecord, await_node
from remora.errors import InstanceError
from remora.home import Home
from remora.transport.address import on_node
from remora.types import Seconds

_LINE_BYTES = 4096
#: An agent that restarts is back in about a second.
_AGENT_LIMIT_S = 30.0
_BETWEEN_TRIES_S = 0.02
#: Of an agent that lives: it may wait for a front door that is handed back to it.
_ANSWER_LIMIT_S: Seconds = 10.0
#: Ports from the default one on at which the REST API may be found where that is taken.
_NEIGHBOURS = 10
#: How an agent asks how much a process has under way, and the answer.
QUESTION = b"?"
ANSWER = struct.Struct("=I")
#: What a process of a kind answers on, of that which the agent holds.
_TAKES = {"proxy": ("http",), "admin": ("admin", "admin_unix")}


def agent_socket(home: Home) -> Path:
    """Where the agent of a node hands out sockets."""
    return home.sockets / "agent.sock"


def process_socket(home: Home, kind: str, pid: int) -> Path:
    """Where a process is reached from its own node. Pure."""
    return home.sockets / f"{kind[0]}{pid}.sock"


def pid_of_socket(path: Path) -> int:
    """The process that a path of `process_socket` or `beat_file` (or its draft) names; 0: none. Pure."""
    found = re.fullmatch(r"[a-z]([1-9][0-9]*)\.(?:sock|beat|new)", path.name)
    return int(found[1]) if found else 0


class Opened(NamedTuple):
    """What a process has of its own when its entry point begins.

    Attributes:
        sockets: that it listens on, by name.
        address: where others reach it; empty: by nothing but these sockets.
        args: for its entry point, beside those that it was made with.
    """

    sockets: dict[str, socket.socket]
    address: str = ""
    args: Mapping[str, Any] = MappingProxyType({})


def open_sockets(
    kind: str,
    home: Home,
    here: RayNode,
    setup: InstanceSetup,
    cluster: Cluster,
    workload: Workload,
) -> Opened:
    """Open what a process of this kind listens on.

    Args:
        kind: as `ProcessRequest.kind`.
        home: state folder of this node.
        here: this node.
        setup: of the instance.
        cluster: of the instance.
        workload: what is under way in it: an agent may ask for it.

    Raises:
        OSError: one of them cannot be opened.
        InstanceError: a front door cannot be, or the agent of this node does not answer.
        EngineError: Ray's head does not answer.
    """
    if kind in _TAKES:
        return _take_doors(home, _TAKES[kind], setup, workload)
    name = "wire" if kind == "replica" else "control"
    path = process_socket(home, kind, os.getpid())
    sockets = {name: listen_unix(path), f"{name}_tcp": listen_tcp(here.host)}
    host, port = sockets[f"{name}_tcp"].getsockname()[:2]
    address = on_node(here.node_id, str(path), host, port)
    if kind == "controller":
        cluster.put(CONTROLLER_ADDRESS, address.encode())
        return Opened(sockets, address, _addresses(cluster, setup, here))
    if kind == "agent":
        sockets["doors"] = listen_unix(agent_socket(home))
        # An agent that was there before gets the rest back from those that hold on to them.
        if cluster.get(NodeRecord.key(here.node_id)) is None:
            sockets["relay"] = listen_unix(home.controller_socket)
            doors, why = open_doors(here, setup)
            sockets |= doors | _open_admin(home, here, setup)
            return Opened(sockets, address, {"no_doors": why})
    return Opened(sockets, address)


def _addresses(cluster: Cluster, setup: InstanceSetup, here: RayNode) -> dict[str, Any]:
    """Say where the instance is reached, once the agents are up that hold its doors."""
    head = await_node(cluster, here.node_id)
    # What that node has left says nothing once it is gone: the head may be on another host by now.
    is_there = setup.node_id in {node.node_id for node in rays.nodes()}
    first = await_node(cluster, setup.node_id) if is_there else None
    door = first if first and (first.http_url or first.grpc_address) else head
    return {
        "http_url": door.http_url if door else "",
        "grpc_address": door.grpc_address if door else "",
        "admin_url": head.admin_url if head else "",
    }


def open_doors(here: RayNode, setup: InstanceSetup) -> tuple[dict[str, socket.socket], str]:
    """Open the front doors of a node, where there are to be any: all of them, or none.

    A node where somebody else has the port does without: its replicas are reached through the doors of
    others. Those next to Ray's head and where the instance was started are the ones that people are
    told.

    Args:
        here: this node.
        setup: of the instance.

    Returns:
        The sockets by name, and why there are none although there are to be some.

    Raises:
        InstanceError: one that must be there cannot be listened on; says why and what to do.
    """
    if not setup.has_proxies(is_head=here.is_head):
        return {}, ""
    doors: dict[str, socket.socket] = {}
    try:
        if setup.http.get("host") is not None:
            doors["http"] = listen_http(str(setup.http["host"]), int(setup.http["port"]))
        if setup.grpc is not None:
            doors["grpc"] = reserve_grpc(setup.grpc["host"], setup.grpc["port"])
    except InstanceError as error:
        for sock in doors.values():
            sock.close()
        if here.is_head or here.node_id == setup.node_id:
            raise
        return {}, error.message
    return doors, ""


def _open_admin(home: Home, here: RayNode, setup: InstanceSetup) -> dict[str, socket.socket]:
    """Open what the REST API answers on: a Unix socket on each node, a port next to Ray's head.

    Raises:
        InstanceError: the address was chosen, and cannot be listened on.
    """
    sockets = {"admin_unix": listen_unix(home.admin_socket)}
    host = setup.admin.get("host")
    if here.is_head and host is not None:
        sockets["admin"] = listen_admin(str(host), int(setup.admin["port"]))
    return sockets


def listen_admin(host: str, port: int) -> socket.socket:
    """Listen for the REST API; at the default address, where Ray's dashboard may be, or next to it.

    Raises:
        InstanceError: the address was chosen, and cannot be listened on.
    """
    others: tuple[int, ...] = ()
    if is_default_admin(host, port):
        others = (*range(ADMIN_PORT + 1, ADMIN_PORT + _NEIGHBOURS), 0)
    for other in others:
        try:
            return listen_http(host, port, ADMIN_DOOR)
        except InstanceError:
            port = other
    return listen_http(host, port, ADMIN_DOOR)


def is_default_admin(host: object, port: object) -> bool:
    """Nobody has chosen this address of the REST API. Pure."""
    return host == "127.0.0.1" and port == ADMIN_PORT


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


def send_sockets(
    connection: socket.socket, sockets: dict[str, socket.socket], **facts: str
) -> None:
    """Send sockets with their names, and what else is to be known of them."""
    line = json.dumps({"names": list(sockets), "facts": facts}).encode()
    fds = array.array("i", [sock.fileno() for sock in sockets.values()])
    ancillary: list[Any] = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if sockets else []
    connection.sendmsg([line], ancillary)


def receive_sockets(
    connection: socket.socket,
) -> tuple[dict[str, socket.socket], dict[str, str]]:
    """Receive sockets with their names, and what else is to be known of them.

    Raises:
        ConnectionError: the other side has closed.
    """
    line, fds, _, _ = socket.recv_fds(connection, _LINE_BYTES, 16)
    if not line:
        raise ConnectionError("the other side has closed")
    told = json.loads(line)
    names = zip(told["names"], fds, strict=True)
    return {name: socket.socket(fileno=fd) for name, fd in names}, told["facts"]


def _take_doors(
    home: Home, wanted: Collection[str], setup: InstanceSetup, workload: Workload
) -> Opened:
    """Get sockets from this node's agent, and hold on to all that it has."""
    connection, doors, facts = _ask_for_doors(home)
    keep = {name: sock.dup() for name, sock in doors.items()}
    _begin_to_hold(home, connection, keep, workload.num_ongoing)
    for name in doors.keys() - set(wanted):
        doors.pop(name).close()
    args: dict[str, Any] = {"http_url": facts["http_url"]}
    if setup.grpc is not None and facts["grpc_address"]:
        # What was found: every proxy opens the same.
        port = int(facts["grpc_address"].rpartition(":")[2])
        args["grpc"] = {**setup.grpc, "port": port}
    return Opened(doors, args=args)


def keep_agent(home: Home, limit_s: Seconds = _AGENT_LIMIT_S) -> None:
    """Have the agent of this node stay for as long as this process lives, though no replica is there.

    Args:
        home: state folder of this node.
        limit_s: it may take so long to answer, and be away for so long.

    Raises:
        InstanceError: it does not answer.
    """
    connection, doors, _ = _ask_for_doors(home, limit_s)
    for sock in doors.values():
        sock.close()
    _begin_to_hold(home, connection, {}, lambda: 1)


def _ask_for_doors(
    home: Home, limit_s: Seconds = _AGENT_LIMIT_S
) -> tuple[socket.socket, dict[str, socket.socket], dict[str, str]]:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return _exchange(home, {}, min(limit_s, _ANSWER_LIMIT_S))
        except OSError as error:
            if time.monotonic() >= deadline:
                raise InstanceError(
                    f"The agent of this node does not answer at {agent_socket(home)}: {error}. Is its "
                    f"process stopped, or the node very busy? {home.logs}/agent.log may say more."
                ) from error
            time.sleep(_BETWEEN_TRIES_S)


def _exchange(
    home: Home, doors: dict[str, socket.socket], limit_s: Seconds = _ANSWER_LIMIT_S
) -> tuple[socket.socket, dict[str, socket.socket], dict[str, str]]:
    """Reach the agent, give it sockets, and get its own.

    A connection to an agent that is stopped comes about all the same: the kernel keeps it waiting.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(limit_s)
        connection.connect(str(agent_socket(home)))
        send_sockets(connection, doors)
        answer = receive_sockets(connection)
        connection.settimeout(None)
    except OSError:
        connection.close()
        raise
    return connection, *answer


def _begin_to_hold(
    home: Home,
    connection: socket.socket,
    doors: dict[str, socket.socket],
    count: Callable[[], int],
) -> None:
    args = (home, connection, doors, count)
    threading.Thread(target=_hold, args=args, daemon=True).start()


def _hold(
    home: Home,
    connection: socket.socket,
    doors: dict[str, socket.socket],
    count: Callable[[], int],
) -> None:
    """Give the sockets back to every agent that follows, and tell each how much is under way."""
    while True:
        try:
            while connection.recv(1):
                connection.sendall(ANSWER.pack(count()))
        except OSError:
            pass
        connection.close()
        while True:
            time.sleep(_BETWEEN_TRIES_S)
            try:
                connection, spares, _ = _exchange(home, doors)
                for spare in spares.values():
                    spare.close()
                break
            except OSError:
                continue
