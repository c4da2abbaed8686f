"""A process of an instance as a Ray actor.

Theory of operation: the actor's methods run one after the other in the main thread. `begin` opens
the sockets and loads the entry point, `run` holds the main thread until the entry point returns,
and `ended`, which whoever cares has called long before, is answered only then, or fails when the
process dies. So an exit is heard of in one round trip, also by a controller that came later.

A permanent process (controller, proxy, agent) begins by itself in its constructor, because Ray
runs nothing else of an actor that it restarts.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, RayError

from remora.core.restart import in_a_row
from remora.engine.base import ProcessContext, Workload
from remora.engine.boot import StartError, UnfitNodeError, load, set_environment
from remora.engine.ray import cluster as rays
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.crashes import HEALTHY_AFTER_S, Crashes, started_again
from remora.engine.ray.forks import let_go_in_children
from remora.engine.ray.setup import (
    CONTROLLER_ADDRESS,
    ENDING,
    InstanceSetup,
    ProcessRecord,
    failure_key,
    find_node,
    is_leaving,
    require_setup,
)
from remora.engine.ray.silence import beat_file
from remora.engine.ray.sockets import open_sockets
from remora.errors import ConfigError, EngineError, InstanceError
from remora.observe.logs import end_log
from remora.transport.membership import join
from remora.transport.node_tls import check_files

#: Signals that Ray handles in its workers, and that a process of ours handles by itself.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BETWEEN_CALLS_S = 0.02
#: Between the tries of a permanent process to come back.
_BETWEEN_STARTS_S = 5.0


def _version() -> str:
    return str(importlib.import_module("remora").__version__)


class ProcessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an actor is made with.

    Attributes:
        kind: `replica`, `controller`, `proxy`, `agent` or `admin`.
        permanent: Ray starts it again whenever it ends.
    """

    process_id: str
    kind: str
    entrypoint: str
    title: str
    namespace: str
    args: dict[str, Any] = {}
    env: dict[str, str] = {}
    permanent: bool = False
    version: str = msgspec.field(default_factory=_version)


class ProcessActor:
    """One process, as `actor.Actor` passes on what it is asked."""

    def __init__(self, request: bytes) -> None:
        self._request = msgspec.msgpack.decode(request, type=ProcessRequest)
        self._cluster = Cluster(self._request.namespace)
        self._context: ProcessContext | None = None
        self._entry: Callable[[ProcessContext], None] | None = None
        self._end: tuple[str, bool] | None = None
        #: Why it has not begun.
        self._failure = "nobody has begun it"
        #: Of this start.
        self._notes: tuple[str, ...] = ()
        if self._request.permanent:
            if rays.is_started_again():
                self._pause()
            self._begin_for_good()
            threading.Thread(target=self._call_run, daemon=True).start()

    def __repr__(self) -> str:
        return self._request.process_id

    def _pause(self) -> None:
        """Wait before a start that follows an end: one that dies at each would never let up."""
        key = Crashes.key(self._request.process_id)
        try:
            data = self._cluster.get(key)
            before = None if data is None else msgspec.msgpack.decode(data, type=Crashes)
            crashes, pause_s = started_again(before, time.time())
            self._cluster.put(key, msgspec.msgpack.encode(crashes))
        except EngineError as error:
            # Nobody knows how often it has ended, and everything else waits for Ray's head, too.
            sys.stderr.write(f"It waits {_BETWEEN_STARTS_S:g} s before it begins: {error}\n")
            time.sleep(_BETWEEN_STARTS_S)
            return
        if pause_s:
            name, times = self._request.process_id, in_a_row(crashes.in_a_row)
            note = (
                f"{name} has ended {times}, each time within {HEALTHY_AFTER_S:g} s of its start: this "
                f"start waits for {pause_s:g} s"
            )
            self._notes = (note,)
            # For one that never comes to have a log.
            sys.stderr.write(f"{note}\n")
            sys.stderr.flush()
            time.sleep(pause_s)

    def _begin_for_good(self) -> None:
        """Begin a permanent process; only one that never was up here gives up."""
        key, told = failure_key(self._request.process_id), ""
        while True:
            try:
                self.begin()
                break
            except (StartError, EngineError) as error:
                failure = str(error)
            if failure != told:
                told = failure
                sys.stderr.write(f"It cannot start: {failure}\n")
            try:
                self._cluster.put(key, failure.encode())
                was_up = self._was_up()
            except EngineError:
                # That it gives up, nobody would hear.
                was_up = True
            if not was_up:
                # Ray would show the traceback of an error to people who read what is stored.
                ray.actor.exit_actor()
            time.sleep(_BETWEEN_STARTS_S)
        if told:
            # Best effort: it would be told as the reason of a later failure.
            with contextlib.suppress(EngineError):
                self._cluster.delete(key)

    def _was_up(self) -> bool:
        """Whether this is the successor of a process that was up, of an instance that is.

        What is wrong then, certificates for example, may be put right, and nobody else starts it
        again.
        """
        if self._is_to_end():
            return False
        if self._request.kind == "controller":
            return self._cluster.get(CONTROLLER_ADDRESS) is not None
        return find_node(self._cluster, rays.this_node()) is not None

    def _is_to_end(self) -> bool:
        """Whether the instance ends, or what it has on this node beside replicas."""
        return self._cluster.get(ENDING) is not None or self._is_to_leave(rays.this_node())

    def _is_to_leave(self, node_id: str) -> bool:
        if self._request.kind not in ("agent", "proxy", "admin"):
            return False
        return is_leaving(self._cluster, node_id)

    def begin(self) -> bytes:
        """Open the sockets, load the entry point; returns a `ProcessRecord`.

        Raises:
            StartError: says why the process cannot start.
        """
        try:
            return self._begin()
        except (StartError, EngineError) as error:
            # For those who wait for its end.
            self._failure = str(error)
            raise

    def _begin(self) -> bytes:
        request = self._request
        if request.version != _version():
            raise UnfitNodeError(
                f"this node ({rays.this_node()[:12]}) has Remora {_version()}, the instance runs "
                f"{request.version}: install the same version on every node",
                rays.this_node(),
            )
        setup = require_setup(self._cluster)
        here = rays.here()
        if self._is_to_leave(here.node_id):
            raise StartError("what is on this node beside replicas is about to end")
        home = setup.home_on(here.node_id, here.session)
        set_environment(request.env)
        os.environ["REMORA_HOME"] = str(home.root)
        join(setup.membership(here))
        if setup.node and request.kind == "agent":
            _check_files(setup, here)
        self._entry = load(request.entrypoint)
        if request.kind in ("replica", "controller"):
            self._await_agent(here.node_id)
        try:
            home.make()
            workload = Workload()
            opened = open_sockets(request.kind, home, here, setup, self._cluster, workload)
        except OSError as error:
            reason = f"cannot listen in {home.sockets}: {error}"
            raise UnfitNodeError(reason, here.node_id) from None
        if request.kind == "replica":
            folders = (home.sockets, Path(here.session) / "sockets")
            let_go_in_children(folders, opened.sockets.values())
        self._context = ProcessContext(
            process_id=request.process_id,
            home=home,
            args={**request.args, **opened.args},
            sockets=opened.sockets,
            address=opened.address,
            token=setup.token,
            keeps_output=True,
            notes=self._notes,
            workload=workload,
            beat_file=beat_file(home, request.kind, os.getpid()),
        )
        record = ProcessRecord(request.process_id, opened.address, os.getpid(), here.node_id)
        return msgspec.msgpack.encode(record)

    def _await_agent(self, node_id: str) -> None:
        """See that the node has its agent: Ray may have put this process where nobody expected it.

        So it does with the controller, when Ray's head has come again on another host.

        Raises:
            UnfitNodeError: it does not come up.
        """
        # Not at the top: it makes actors, and knows this module for that.
        from remora.engine.ray import fleet

        try:
            fleet.ensure_agent(self._cluster, node_id)
        except InstanceError as error:
            raise UnfitNodeError(error.message, node_id) from None

    def _call_run(self) -> None:
        """Call `run` as others would: on the main thread, after the constructor."""
        myself = self._cluster.actor(self._request.process_id)
        while True:
            try:
                ray.get(myself.run.remote())
                return
            except ActorUnavailableError:
                # It restarts, and has heard of that only after it has called itself.
                time.sleep(_BETWEEN_CALLS_S)
            except RayError:
                return

    def run(self) -> None:
        """Run the entry point until it returns."""
        if self._end is None:
            self._end = self._run()

    def _run(self) -> tuple[str, bool]:
        if self._context is None or self._entry is None:
            return f"could not start: {self._failure}", False
        rays.set_title(self._request.title)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        end = _run(self._entry, self._context)
        for sock in self._context.sockets.values():
            sock.close()
        if self._request.permanent:
            self._follow_instance()
        return end

    def _follow_instance(self) -> None:
        """End for good with the instance, or with what it has on this node; else end in a way that makes Ray start it again."""
        try:
            ends = self._is_to_end()
        except EngineError:
            # Its successor looks again.
            ends = False
        if not ends:
            os._exit(1)
        if self._request.kind == "controller":
            # The last of the instance: nobody else is left to end it.
            self._cluster.delete(ENDING)
            self._cluster.kill(self._request.process_id)

    def ended(self) -> tuple[str, bool]:
        """How `run` ended: the reason, and whether it was status 0."""
        # Of a permanent process this may be called before its own call of `run` arrives.
        self.run()
        assert self._end is not None
        return self._end


def _check_files(setup: InstanceSetup, here: RayNode) -> None:
    try:
        check_files(setup.node, here.host)
    except ConfigError as error:
        raise UnfitNodeError(
            f"this node ({here.node_id[:12]}) cannot talk to others: {error}", here.node_id
        ) from None


def _run(entry: Callable[[ProcessContext], None], context: ProcessContext) -> tuple[str, bool]:
    try:
        entry(context)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0) & 0xFF if isinstance(error.code, int | None) else 1
    # Border: a process's main.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    # The end of an actor runs no exit handlers.
    end_log()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return f"exit status {status}", status == 0
