"""The agent of a node: holds what must outlive a proxy or the controller, and passes commands on.

- It holds the listening sockets of the node's front doors and of the REST API (`sockets.py`), and starts the
  process of that API when somebody first asks it something.
- It listens where processes of its node look for the controller, and relays them (`relay.py`).
- It sends signals to processes of its node for the controller, and removes what they leave.
- It knows who needs it and its proxies, and departs when it is asked to and nobody does.
- It ends those of the permanent ones that live and do nothing (`silence.py`); Ray starts them again.

Rules: decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from remora.engine import linux, socket_folder
from remora.engine.base import ProcessContext
from remora.engine.claim import Claim, Owner, remove_sockets
from remora.engine.doors import address_of, http_url, listen_http, listen_unix
from remora.engine.ray import cluster as rays
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.departure import Departure
from remora.engine.ray.end import SignalProcess
from remora.engine.ray.holders import Holders
from remora.engine.ray.relay import Relay
from remora.engine.ray.setup import (
    InstanceSetup,
    NodeRecord,
    find_node,
    require_setup,
)
from remora.engine.ray.silence import LOOK_EVERY_S, Silence, end_silent, read_beats
from remora.engine.ray.sockets import (
    agent_socket,
    open_doors,
    pid_of_socket,
    process_socket,
    receive_sockets,
    send_sockets,
)
from remora.errors import EngineError, InstanceError
from remora.home import Home
from remora.observe.logs import log_of_system_process
from remora.transport.control import ControlHandler, serve_control
from remora.transport.listener import KEEPS_FILE
from remora.transport.membership import mine
from remora.wire.codec import unpack

_log = logging.getLogger("remora.agent")
_BETWEEN_TRIES_S = 0.03
#: Proxies hand sockets back within a tenth of that to an agent that restarts.
_HAND_BACK_S = 1.0
#: A front door that somebody else holds is handed back, or free, after this long.
_REOPEN_S = 5.0
#: Between two looks for sockets of processes that are gone.
_SWEEP_EVERY_S = 30.0
#: What this process holds for others.
_HELD = ("http", "relay", "admin", "admin_unix")


def main(context: ProcessContext) -> None:
    """Entry point of an agent."""
    log_of_system_process(context, "agent", "agent")
    uvloop.run(_serve(context))


async def _serve(context: ProcessContext) -> None:
    cluster = Cluster(str(context.args["namespace"]))
    setup = require_setup(cluster)
    here = mine()
    known = find_node(cluster, here.node_id)
    doors = Doors(
        setup, context.home, context.sockets, known, str(context.args.get("no_doors", ""))
    )
    here.write(context.home)
    # For as long as this process is there: nobody sweeps what it listens in.
    socket_folder.hold(context.home)
    claim = None
    if here.node_id != setup.node_id:
        # Where the instance was started its host holds the folder.
        claim = Claim.take(context.home)
        cluster_address = rays.address()
        claim.write_owner(
            Owner(os.getpid(), context.token, doors.http_url, engine="ray", cluster=cluster_address)
        )
    threading.Thread(target=doors.serve, args=(context.sockets["doors"],), daemon=True).start()
    relay = Relay(cluster)
    listener = await asyncio.to_thread(doors.complete)
    relaying = await asyncio.start_unix_server(relay.serve, sock=listener.dup(), **KEEPS_FILE)
    record = NodeRecord(
        here.node_id,
        context.address,
        doors.http_url,
        doors.grpc_address,
        doors.admin_url,
        doors.none_because,
    )

    def close() -> None:
        relaying.close()
        if claim is not None:
            # Before the sockets: who takes this folder for that of an instance is to find them.
            with contextlib.suppress(InstanceError):
                claim.write_owner(None)
            claim.close()
        doors.close()
        # Who looks for the controller there sees at once that nobody relays any more.
        _remove_own_sockets(context.home)

    departure = Departure(cluster, record, doors.holders, relay, close)
    commands: Mapping[str, ControlHandler] = {
        "signal": _signal,
        "busy": departure.busy,
        "depart": departure.depart,
        "ping": _ping,
        "leave": partial(_leave, context.home, claim),
    }
    servers = [
        await serve_control(context.sockets["control"], commands),
        await serve_control(context.sockets["control_tcp"], commands, context.token),
        relaying,
    ]
    record.save(cluster)
    first_asked = threading.Thread(
        target=start_when_asked, args=(cluster, setup, here.node_id, doors.admin), daemon=True
    )
    first_asked.start()
    beside = [
        asyncio.ensure_future(_sweep(context.home.sockets)),
        asyncio.ensure_future(_watch(context.home)),
    ]
    if record.no_doors:
        _log.warning("This node has no front door: %s", record.no_doors)
        beside.append(asyncio.ensure_future(_open_late(setup, doors, departure, record)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, departure.over.set)
    await departure.over.wait()
    for task in beside:
        task.cancel()
    for server in servers:
        server.close()
    _remove_own_sockets(context.home)
    remove_left_sockets(context.home.sockets)
    socket_folder.leave(context.home)


async def _open_late(
    setup: InstanceSetup, doors: Doors, departure: Departure, record: NodeRecord
) -> None:
    """Open the front doors as soon as nobody else has their ports."""
    here = await asyncio.to_thread(rays.here)
    while True:
        await asyncio.sleep(_REOPEN_S)
        sockets, why = await asyncio.to_thread(open_doors, here, setup)
        if not why:
            break
    doors.take(sockets)
    await departure.tell(
        msgspec.structs.replace(
            record, http_url=doors.http_url, grpc_address=doors.grpc_address, no_doors=""
        )
    )
    _log.info("This node has its front door: %s", doors.http_url or doors.grpc_address)


def _remove_own_sockets(home: Home) -> None:
    own = process_socket(home, "agent", os.getpid())
    others = (home.controller_socket, home.admin_socket, home.tally_file)
    for path in (own, agent_socket(home), *others):
        path.unlink(missing_ok=True)


def start_when_asked(
    cluster: Cluster, setup: InstanceSetup, node_id: str, sockets: Sequence[socket.socket]
) -> None:
    """Start the process of the REST API when somebody asks it something: until then it costs nothing.

    Args:
        cluster: of the instance.
        setup: of the instance.
        node_id: this node.
        sockets: that it answers on.
    """
    while True:
        try:
            select.select(sockets, [], [])
        except (OSError, ValueError):
            # They are closed: this agent leaves.
            return
        try:
            fleet.ensure_admin(cluster, setup, node_id)
            return
        except EngineError as error:
            _log.warning("The REST API cannot be started and is tried again: %s", error)
            time.sleep(_REOPEN_S)


async def _sweep(folder: Path) -> None:
    """Remove again and again what processes of this node have left."""
    while True:
        await asyncio.sleep(_SWEEP_EVERY_S)
        try:
            remove_left_sockets(folder)
        except OSError as error:
            _log.warning("Sockets of processes that are gone are not removed: %s", error)


async def _watch(home: Home) -> None:
    """End permanent processes of this node that live and do nothing."""
    silence: Silence[Path] = Silence()
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            for path in silence.look(read_beats(home), loop.time()):
                end_silent(path)
        except (OSError, ValueError) as error:
            _log.warning("Processes that do nothing are not ended: %s", error)


def remove_left_sockets(folder: Path) -> None:
    """Remove the sockets of processes that are gone: one that was killed leaves its own.

    Args:
        folder: of sockets, those of processes named after their pids (`sockets.process_socket`).
    """
    for path in folder.iterdir():
        pid = pid_of_socket(path)
        if pid and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)


async def _ping(_body: bytes) -> bytes:
    return b""


async def _signal(body: bytes) -> bytes:
    order = unpack(body, SignalProcess)
    linux.send_signal(order.pid, order.number)
    return b""


async def _leave(home: Home, claim: Claim | None, _body: bytes) -> bytes:
    """Remove what lies about of an instance that ends: this process is about to be killed."""
    remove_sockets(home)
    socket_folder.leave(home)
    home.membership_file.unlink(missing_ok=True)
    if claim is not None:
        claim.write_owner(None)
    return b""


class Doors:
    """The front doors of this node, and what else must outlive those who answer there.

    Attributes:
        http_url: opens the one for HTTP; empty without.
        grpc_address: `host:port` of the one for gRPC; empty without.
        admin_url: of the REST API; empty: it has only its Unix socket.
        holders: processes that have them as well, and hand them back.
        none_because: why there is no front door although there is to be one; empty: there is.
    """

    def __init__(
        self,
        setup: InstanceSetup,
        home: Home,
        sockets: Mapping[str, socket.socket],
        known: NodeRecord | None,
        none_because: str = "",
    ) -> None:
        """Take hold of them.

        Args:
            setup: of the instance.
            home: state folder of this node.
            sockets: as far as they are to be, by name.
            known: what an agent before this one left; others hand its sockets back.
            none_because: why there is no front door yet; empty: there is one, or is to be none.
        """
        self._setup = setup
        #: That for gRPC, which nobody else is to take.
        self._kept: list[socket.socket] = []
        # That for gRPC only keeps the port: the proxies open it themselves.
        self._sockets = {name: sockets[name] for name in _HELD if name in sockets}
        self._home = home
        self.holders = Holders()
        self._lock = threading.Lock()
        self._given = threading.Event()
        self._open: Callable[[], socket.socket] | None = None
        self._open_admin: Callable[[], socket.socket] | None = None
        self.none_because = none_because if known is None else known.no_doors
        if known is None:
            self.http_url = http_url(sockets.get("http"), setup.http)
            self.grpc_address = address_of(sockets.get("grpc"))
            self.admin_url = http_url(sockets.get("admin"), {})
            return
        self.http_url, self.grpc_address = known.http_url, known.grpc_address
        self.admin_url = known.admin_url
        self._open = _opener(setup.http.get("host"), known.http_url)
        self._open_admin = _opener(setup.admin.get("host"), known.admin_url)

    @property
    def admin(self) -> list[socket.socket]:
        """Those of the REST API."""
        with self._lock:
            return [sock for name, sock in self._sockets.items() if name.startswith("admin")]

    def complete(self) -> socket.socket:
        """See that all are there but the front door for HTTP, which is opened when it is asked for.

        Returns the one at which processes of the node look for the controller.
        """
        if "relay" not in self._sockets:
            self._given.wait(_HAND_BACK_S)
        with self._lock:
            held = self._sockets
            if "relay" not in held:
                held["relay"] = listen_unix(self._home.controller_socket)
            if "admin_unix" not in held:
                held["admin_unix"] = listen_unix(self._home.admin_socket)
            if "admin" not in held and self._open_admin is not None:
                try:
                    held["admin"] = self._open_admin()
                except InstanceError as error:
                    _log.warning("The REST API has only its Unix socket: %s", error)
            return held["relay"]

    def take(self, sockets: Mapping[str, socket.socket]) -> None:
        """Take hold of front doors that could not be opened before."""
        with self._lock:
            self._sockets |= {name: sock for name, sock in sockets.items() if name in _HELD}
            self._kept = [sock for name, sock in sockets.items() if name not in _HELD]
        self.http_url = http_url(sockets.get("http"), self._setup.http)
        self.grpc_address = address_of(sockets.get("grpc"))
        self.none_because = ""

    def close(self) -> None:
        """Let go of all of them: who comes from now on is refused."""
        with self._lock:
            for sock in (*self._sockets.values(), *self._kept):
                sock.close()
            self._sockets.clear()

    def serve(self, listener: socket.socket) -> None:
        """Hand them on, in a thread of its own."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                given, _ = receive_sockets(connection)
                facts = {"http_url": self.http_url, "grpc_address": self.grpc_address}
                send_sockets(connection, self._get(given), **facts)
                # Who has them takes the end of this connection for our end.
                self.holders.follow(connection)
            except (OSError, ValueError, InstanceError) as error:
                _log.warning("A process got no sockets: %s", error)

    def _get(self, given: dict[str, socket.socket]) -> dict[str, socket.socket]:
        with self._lock:
            for name, sock in given.items():
                if self._sockets.setdefault(name, sock) is not sock:
                    sock.close()
        if given:
            self._given.set()
        deadline = time.monotonic() + _REOPEN_S
        while self._open is not None and "http" not in self._sockets:
            try:
                opened = self._open()
            except InstanceError:
                # Another proxy still has it and is about to hand it back.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_BETWEEN_TRIES_S)
                continue
            with self._lock:
                self._sockets.setdefault("http", opened)
        with self._lock:
            return dict(self._sockets)


def _opener(host: object, url: str) -> Callable[[], socket.socket] | None:
    """Tell how to listen again where an agent before this one did; None: it did not."""
    port = urlsplit(url).port
    if host is None or port is None:
        return None
    return lambda: listen_http(str(host), port)
