"""The process that stands for an instance on Ray on the machine where it was started.

It holds the state folder, joins the Ray cluster (or is the cluster: one that nobody else has
started lives as long as this process), makes the first actors, and waits for the end: of the
instance, or of the program that owns it. An instance in a cluster of others goes on without it;
`remora start` takes hold of it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Every line that a user's code prints is shown, however often it prints the same.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
# Colours are for terminals.
os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stderr.isatty() else "0")

import msgspec
import ray
import setproctitle
from ray.exceptions import ActorUnavailableError, RayError

from remora.engine import linux, socket_folder
from remora.engine.admin_token import is_loopback, token_of
from remora.engine.boot import InstanceOptions, answer, close_strangers, read_grpc
from remora.engine.claim import Claim, Owner, folder_error, remove_sockets
from remora.engine.doors import ADMIN_PORT
from remora.engine.ray import cluster as rays
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.end import end_processes, kill_all
from remora.engine.ray.groups import remove_groups
from remora.engine.ray.own_ray import load_ahead
from remora.engine.ray.own_turn import own_turn
from remora.engine.ray.setup import ENDING, InstanceSetup, NodeRecord, find_setup, forget
from remora.engine.ray.sign_in import shows_token
from remora.engine.ray.sockets import is_default_admin, keep_agent
from remora.engine.ray.staffing import min_closing_s
from remora.errors import ConfigError, EngineError, InstanceError
from remora.home import Home
from remora.options.node import NodeOptions
from remora.options.resources import MachineOptions
from remora.transport.membership import join
from remora.transport.node_tls import check_files

_BETWEEN_TRIES_S = 0.1
#: What others may take to start an instance, or to end one, before this one gives up: whoever has
#: launched this process waits for a minute.
_TURN_LIMIT_S = 45.0
#: The same for who is about to end, which waits for nobody for long.
_END_TURN_LIMIT_S = 5.0
#: From the moment when everything is told to end: proxies have five seconds of it.
_ENDING_LIMIT_S = 20.0
#: Until an agent is looked for again that does not answer.
_AGENT_LIMIT_S = 5.0
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Options(InstanceOptions):
    """How an instance is to be; its machine is what a cluster that this process starts has.

    Attributes:
        address: of the Ray cluster, see `cluster.connect`.
        proxy_location: on which nodes proxies run.
        node: of connections between nodes.
    """

    address: str = ""
    proxy_location: str = "EveryNode"
    node: Mapping[str, Any] = field(default_factory=dict)


class Host:
    """One instance, held."""

    def __init__(self, options: Options, claim: Claim) -> None:
        self._options = options
        self._claim = claim
        self._cluster = Cluster()
        self._setup: InstanceSetup
        self._controller: Any = None
        #: Somebody else started the instance: it stays when this process ends.
        self.joined = False
        #: It does so in another state folder.
        self._is_link = False
        #: Nothing of this state folder's is needed any more.
        self.leaves = False
        self._over = threading.Event()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)

    def begin(self) -> NodeRecord:
        """Find the instance of the cluster, or start one; returns where it serves.

        Raises:
            InstanceError: says what is in the way.
        """
        machine = msgspec.convert(self._options.machine, MachineOptions)
        wanted = msgspec.convert(self._options.node, NodeOptions)
        # In the background nobody watches, and a copy of every log would grow for ever.
        shows = self._options.owner_fd is not None
        threading.Thread(target=load_ahead, daemon=True).start()
        is_new = rays.connect(self._options.address, machine, shows=shows)
        nodes = {node.node_id: node for node in rays.nodes()}
        here = nodes[rays.this_node()]
        head = next((node for node in nodes.values() if node.is_head), here)
        with own_turn(self._cluster, _TURN_LIMIT_S):
            found = self._find()
            if found is None:
                if wanted:
                    # Before anything is started, and told to whoever named the files.
                    check_files(wanted, here.host)
                self._set_up(here, wanted, has_fixed_nodes=is_new)
                join(self._setup.membership(here))
                return self._start(here, head)
        self._setup = found
        self.joined = True
        _refuse_other(wanted, found.node)
        join(found.membership(here))
        door = self._ensure_agent(here, found)
        self._link(here)
        if here.node_id == head.node_id or door.http_url or door.grpc_address:
            return door
        return fleet.ensure_agent(self._cluster, head.node_id)

    def _ensure_agent(self, here: RayNode, found: InstanceSetup) -> NodeRecord:
        """See that this node has an agent for as long as this process lives.

        Commands of this node are to find the instance, whether replicas are here or not.
        """
        door = fleet.ensure_agent(self._cluster, here.node_id)
        if here.node_id == found.node_id:
            return door
        home = found.home_on(here.node_id, here.session)
        try:
            keep_agent(home, _AGENT_LIMIT_S)
        except InstanceError:
            # It may have been on its way out just then.
            door = fleet.ensure_agent(self._cluster, here.node_id)
            keep_agent(home)
        return door

    def _find(self) -> InstanceSetup | None:
        """Find the instance of the cluster; one that ends is waited for.

        Raises:
            InstanceError: it does not end.
        """
        deadline = time.monotonic() + _ENDING_LIMIT_S
        while True:
            found = find_setup(self._cluster)
            self._controller = self._cluster.actor(fleet.CONTROLLER)
            if found is None or self._controller is None:
                return None
            if self._cluster.get(ENDING) is None:
                return found
            if time.monotonic() >= deadline:
                raise InstanceError(
                    f"The instance of this cluster has been ending for {_ENDING_LIMIT_S:g} s. Try again "
                    "in a moment; `ray list actors` shows what is left of it in the namespace "
                    f"{self._cluster.namespace!r}."
                )
            time.sleep(_BETWEEN_TRIES_S)

    def _start(self, here: RayNode, head: RayNode) -> NodeRecord:
        """Start the instance: all of it at once, because each worker of Ray takes most of a second.

        What needs another process that is not there yet waits for it by itself.

        Args:
            here: this node.
            head: that of Ray's head.

        Raises:
            InstanceError: it cannot start; nothing of it is left.
        """
        first = {node.node_id: node for node in (here, head)}
        try:
            agents = {id_: fleet.begin_agent(self._cluster, id_) for id_ in first}
            # Before the proxies: Ray has a worker for each core that waits, and replicas come after
            # this one. One more for the first replica would not be there when that is asked for, Ray
            # would start yet another, and all would be later.
            self._controller = fleet.start_controller(self._cluster, self._setup, head)
            for node in first.values():
                fleet.ensure_proxies(self._cluster, self._setup, node)
            there = {id_: fleet.wait_up(self._cluster, id_, agents[id_]) for id_ in first}
        except EngineError:
            with contextlib.suppress(EngineError):
                end_processes(self._cluster, self._setup, 0.0)
                remove_sockets(self._claim.home)
            raise
        self._tell_admin(there[head.node_id])
        door = there[here.node_id]
        return door if door.http_url or door.grpc_address else there[head.node_id]

    def _tell_admin(self, head: NodeRecord) -> None:
        admin = self._options.admin
        is_default = is_default_admin(admin.get("host"), admin.get("port"))
        if is_default and urlsplit(head.admin_url).port != ADMIN_PORT:
            log(
                f"port {ADMIN_PORT} is in use, by Ray's dashboard or another program: the REST API is "
                f"at {head.admin_url}"
            )

    def _set_up(self, here: RayNode, node: NodeOptions, *, has_fixed_nodes: bool) -> None:
        """Leave nothing of an earlier instance, and write down how this one is to be."""
        kill_all(self._cluster)
        remove_groups(self._cluster.namespace)
        forget(self._cluster)
        remove_sockets(self._claim.home)
        options = self._options
        self._setup = InstanceSetup(
            home=str(self._claim.home.root),
            node_id=here.node_id,
            has_fixed_nodes=has_fixed_nodes,
            min_closing_s=min_closing_s(os.environ),
            token=secrets.token_hex(16),
            node=node,
            http=dict(options.http),
            proxy_location=options.proxy_location,
            grpc=read_grpc(options.grpc_fd),
            logging=None if options.logging is None else dict(options.logging),
            admin=dict(options.admin),
            admin_token=_admin_token(self._claim.home, options.admin.get("host")),
            tracing=None if options.tracing is None else dict(options.tracing),
            bound_job=rays.this_job() if options.owner_fd is not None else "",
            controller=options.controller,
            proxy=options.proxy,
        )
        self._setup.save(self._cluster)

    def _link(self, here: RayNode) -> None:
        """Let programs that know this state folder reach an instance of another one."""
        theirs = self._setup.home_on(here.node_id, here.session)
        ours = self._claim.home
        if theirs == ours:
            return
        self._is_link = True
        try:
            ours.controller_socket.unlink(missing_ok=True)
            ours.controller_socket.symlink_to(theirs.controller_socket)
            self._setup.membership(here).write(ours)
        except OSError as error:
            raise folder_error(ours, error) from None

    # -------------------------------------------------------------------------------------- wait

    def wait(self) -> None:
        """Wait until the instance, or whoever owns it, has ended; then see that nothing is left."""
        for number in _END_SIGNALS:
            # The handler does nothing; its number arrives on the wake-up socket.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._follow, daemon=True).start()
        owner_fd = self._options.owner_fd
        watched = [self._wake_read.fileno(), *([] if owner_fd is None else [owner_fd])]
        grace_s = self._options.grace_s
        while not self._over.is_set():
            readable, _, _ = select.select(watched, [], [])
            if owner_fd in readable and not os.read(owner_fd or 0, 4096):
                grace_s = 0.0
                break
            if self._wake_read.fileno() in readable and self._wake_read.recv(4096).strip(b"\0"):
                break
        self._finish(grace_s)

    def _follow(self) -> None:
        """Wait for the controller's end, in a thread of its own."""
        while True:
            try:
                ray.get(self._controller.ended.remote())
            except ActorUnavailableError:
                # It restarts.
                time.sleep(_BETWEEN_TRIES_S)
                continue
            except RayError:
                break
            # It has ended its work and is about to go.
            time.sleep(_BETWEEN_TRIES_S)
        self._over.set()
        self._wake_write.send(b"\0")

    def _finish(self, grace_s: float) -> None:
        self._claim.write_ending()
        if not self.joined and not self._over.is_set():
            self._end(grace_s)
        if self._is_link or not self.joined:
            # Those of an instance that goes on here are its agent's.
            self._claim.home.membership_file.unlink(missing_ok=True)
            self.leaves = True

    def _end(self, grace_s: float) -> None:
        with contextlib.ExitStack() as stack:
            try:
                # Whoever starts one meanwhile finds all of this one, or nothing.
                stack.enter_context(own_turn(self._cluster, _END_TURN_LIMIT_S))
            except EngineError as error:
                log(str(error))
            try:
                end_processes(self._cluster, self._setup, grace_s)
            except EngineError as error:
                log(str(error))


def _admin_token(home: Home, host: object) -> str:
    """Read or make the token of the REST API, which may run on another node; empty: it needs none.

    Raises:
        InstanceError: its file is empty, or cannot be used.
    """
    if host is None or is_loopback(str(host)):
        return ""
    try:
        return token_of(home)
    except OSError as error:
        raise folder_error(home, error) from None


def _refuse_other(wanted: NodeOptions, runs: NodeOptions) -> None:
    """Refuse to join an instance whose nodes talk in another way than was asked for.

    Raises:
        ConfigError: names the first option that differs.
    """
    if wanted:
        for name in NodeOptions.__struct_fields__:
            has, wants = getattr(runs, name), getattr(wanted, name)
            if has != wants:
                raise ConfigError(
                    f"node_options[{name!r}]",
                    wants,
                    f"is {has!r} in the instance of this cluster; shut it down to change this, or "
                    "leave it out to join it",
                )


def log(text: str) -> None:
    """Say something about the instance where its owner can see it."""
    os.write(2, f"remora host: {text}\n".encode(errors="replace"))


def main() -> None:
    """Run a host with the options in the first argument."""
    options = Options(**json.loads(sys.argv[1]))
    # What Ray prints of its processes is no output of the program that this instance belongs to.
    sys.stdout = sys.stderr
    close_strangers((options.owner_fd, options.ready_fd, options.grpc_fd))
    linux.raise_fd_limit()
    token = os.environ[linux.TOKEN_VARIABLE]
    bound = options.owner_fd is not None
    claim = None
    try:
        claim = Claim.take(Home(Path(options.home)))
        claim.write_owner(Owner(os.getpid(), token, "", bound, engine="ray"))
        host = Host(options, claim)
        door = host.begin()
    except (ConfigError, InstanceError, EngineError) as error:
        # Whoever hears of it ends this process, which ends by itself, in its own order.
        for number in _END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if claim is not None:
            # Else the folder is somebody else's, who may have put nothing into it yet. What is in it
            # may be of an instance that goes on.
            socket_folder.leave(claim.home)
            claim.close()
        answer(options.ready_fd, {"error": str(error)})
        ray.shutdown()
        sys.exit(1)
    owner = Owner(
        os.getpid(),
        token,
        door.http_url,
        bound,
        grpc_address=door.grpc_address,
        grpc_digest=options.grpc_digest,
        engine="ray",
        cluster=rays.address(),
        shows_token=shows_token(),
    )
    claim.write_owner(owner)
    answer(
        options.ready_fd,
        {"ready": door.http_url, "grpc": door.grpc_address, "joined": host.joined},
    )
    setproctitle.setproctitle("remora: host")
    socket_folder.sweep()
    try:
        host.wait()
    finally:
        if host.leaves:
            claim.leave()
        else:
            claim.write_owner(None)
            claim.close()
        ray.shutdown()
