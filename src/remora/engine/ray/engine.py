"""`Engine` over Ray: the controller's actor starts and follows the actors of the replicas.

Theory of operation: every process is a detached actor with the name of its id, so it outlives the
controller. `ended` of an actor is awaited from the moment it is made, or found again: its answer,
or its failure, is the exit. What came up leaves a record in Ray's store, which tells a restarted
controller pid and address. Nodes are looked at twice a second.

Concurrency: one event loop; what blocks on Ray's head runs in one thread, in order. Signals go to
the agents of the nodes over connections, each in a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from remora.engine.base import (
    Engine,
    EngineEvent,
    Missing,
    NodeLost,
    ProcessExited,
    ProcessPreparing,
    ProcessSpec,
    ProcessStarted,
    SystemProcess,
)
from remora.engine.boot import StartError, UnfitNodeError
from remora.engine.ray import fleet, groups
from remora.engine.ray.agent_watch import AgentWatch
from remora.engine.ray.cluster import NAMESPACE, Cluster, this_node
from remora.engine.ray.crashes import reason_of
from remora.engine.ray.end import ask_to_end, end_processes
from remora.engine.ray.head import Head
from remora.engine.ray.nodes import NodeWatch
from remora.engine.ray.patience import wait_for_end
from remora.engine.ray.refusals import reason_of_error
from remora.engine.ray.replicas import create_replica, waits_for
from remora.engine.ray.seeker import RoomSeeker
from remora.engine.ray.setup import (
    ENDING,
    ProcessRecord,
    read_crashes,
    read_records,
    require_setup,
)
from remora.errors import EngineError
from remora.transport import address as addresses
from remora.types import NodeID, Seconds

_log = logging.getLogger("remora.engine")

#: What proxies have to finish what they have, when the instance ends.
_PROXY_GRACE_S: Seconds = 5.0
_BETWEEN_TRIES_S: Seconds = 0.1
#: A worker of Ray is there in a second; one that is not waits for something.
_SLOW_S: Seconds = 5.0


@dataclass
class _Process:
    """A replica's process as this controller knows it."""

    process_id: str
    actor: Any
    #: It was asked to end.
    is_ending: bool = False
    record: ProcessRecord | None = None
    #: Where it was to be, until it is known where it is.
    node_id: str = ""
    killer: asyncio.Handle | None = None
    kill_at: Seconds = 0.0
    #: A placement group goes with it.
    has_group: bool = False
    #: The nodes that these must lie on; empty: any will do.
    group_nodes: frozenset[str] = frozenset()


class RayEngine(Engine):
    """Runs the processes of an instance as Ray actors. Ray is connected."""

    default_resources = MappingProxyType({"CPU": 1.0})

    def __init__(self, namespace: str = NAMESPACE) -> None:
        self._cluster = Cluster(namespace)
        self._head = Head(self._spawn)
        self._ask = self._head.ask
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._processes: dict[str, _Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ending = False
        self._seeker = RoomSeeker(namespace, ask=self._ask, spawn=self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)

    # ---------------------------------------------------------------------------------- events

    async def connect(self) -> None:
        """Find what runs, and begin to watch the nodes."""
        self._setup = await self._ask(require_setup, self._cluster)
        self.has_fixed_nodes = self._setup.has_fixed_nodes
        self.node_id = NodeID(await self._ask(this_node))
        self._nodes = NodeWatch(
            self._cluster,
            self._setup,
            tell=self._tell,
            ask=self._ask,
            see_to=self._head.see_to,
            spawn=self._spawn,
            occupied=self._occupied,
            own_id=self.node_id,
        )
        await self._nodes.begin()
        await self._adopt()
        self._spawn(self._watch(), "nodes")
        agents = AgentWatch(self._cluster, self._setup.token, self._nodes.nodes, self._ask)
        self._spawn(agents.watch(), "agents")
        if await self._ask(self._cluster.get, ENDING) is not None:
            # An earlier controller could not end all of it.
            await self.shutdown()

    def _occupied(self) -> set[str]:
        """The nodes where processes are, or are about to be."""
        return {
            each.node_id if each.record is None else each.record.node_id
            for each in self._processes.values()
        }

    async def _watch(self) -> None:
        await self._nodes.watch()
        _log.info("The program that this instance belongs to has ended.")
        await self.shutdown()

    async def _adopt(self) -> None:
        """Follow the processes of an earlier controller; kill what it had no record of."""
        records = {
            record.process_id: record for record in await self._ask(read_records, self._cluster)
        }
        for name in await self._ask(self._cluster.names):
            if fleet.is_permanent(name):
                continue
            record = records.pop(name, None)
            actor = await self._ask(self._cluster.actor, name)
            if record is None or actor is None:
                await self._ask(self._cluster.kill, name)
                continue
            process = self._processes[name] = _Process(
                name, actor, record=record, has_group=record.has_group
            )
            self._tell_started(record)
            self._spawn(self._follow(process, None, actor.ended.remote()), name)
        # Of what was killed here, of what ended or never came, and of what waited for room.
        await self._ask(groups.remove_groups, self._cluster.namespace, list(self._processes))
        for gone in records:
            await self._ask(self._cluster.delete, ProcessRecord.key(gone))

    async def events(self) -> AsyncIterator[EngineEvent]:
        """Give every event once; one reader at a time."""
        while (event := await self._events.get()) is not None:
            yield event
        # For a reader that asks again.
        self._events.put_nowait(None)

    def _tell(self, event: EngineEvent) -> None:
        if isinstance(event, NodeLost):
            self._end_waiting_for(event.node_id)
        if not self._is_ending:
            self._events.put_nowait(event)

    def _end_waiting_for(self, node_id: str) -> None:
        """End what waits for room on a node that is gone: Ray would let its group wait for ever."""
        for process in self._processes.values():
            if process.record is None and node_id in process.group_nodes:
                self._spawn(self._kill(process), f"end of {process.process_id}")

    def _tell_started(self, record: ProcessRecord) -> None:
        self._tell(
            ProcessStarted(record.process_id, record.address, record.pid, NodeID(record.node_id))
        )

    # ------------------------------------------------------------------------------- processes

    async def start_process(self, spec: ProcessSpec) -> None:
        """Make the actor of a process.

        Raises:
            EngineError: no node takes it, or Ray takes no such actor.
        """
        name, namespace = spec.process_id, self._cluster.namespace
        # Nobody has chosen that of a builder; and what was chosen may be gone, or unfit, by now.
        node_id = spec.node_id if spec.node_id in self._nodes.fit else self._nodes.choose()
        if not node_id:
            raise EngineError(
                "no node of the Ray cluster takes processes; `remora status` says why"
            )
        self._nodes.expect(node_id)
        try:
            actor = await self._ask(create_replica, spec, namespace, node_id, self._nodes.unfit)
        except Exception as error:
            # Ray may have taken it all the same, and only its answer is lost.
            await self._head.see_to(f"Killing {name}", self._cluster.kill, name)
            if groups.has_group(spec):
                what = f"Removing the group of {name}"
                await self._head.see_to(what, groups.remove_group, namespace, name)
            raise EngineError(f"Ray takes no actor for {name}: {error}") from error
        process = self._processes[name] = _Process(
            name,
            actor,
            node_id=node_id,
            has_group=groups.has_group(spec),
            group_nodes=groups.group_nodes(spec),
        )
        self._spawn(self._tell_slow(process, spec), f"wait for {name}")
        begun, _, ended = actor.begin.remote(), actor.run.remote(), actor.ended.remote()
        self._spawn(self._follow(process, begun, ended), name)

    async def _tell_slow(self, process: _Process, spec: ProcessSpec) -> None:
        """Say that a process waits for Ray, before somebody takes it for lost."""
        await asyncio.sleep(_SLOW_S)
        if process.process_id in self._processes and process.record is None:
            self._tell(ProcessPreparing(process.process_id, waits_for(spec)))

    async def _follow(self, process: _Process, begun: Any, ended: Any) -> None:
        """Tell what becomes of a process: once it is gone that is told, whatever else fails."""
        process_id, refused = process.process_id, False
        try:
            if begun is not None:
                await self._take_up(process, await begun)
            reason, expected = await self._end_of(process, ended)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, StartError) else error
            reason, expected = f"could not start: {cause}", False
            if isinstance(cause, UnfitNodeError):
                refused = True
                self._nodes.distrust(cause.node_id, reason_of_error(cause))
        except RayError as error:
            reason, expected = reason_of(error), False
        # Border: somebody waits for the exit of what is not followed any more.
        except Exception as error:  # noqa: BLE001
            _log.exception("%s cannot be followed and is ended", process_id)
            reason, expected = f"it could not be followed: {error!r}", False
        if process.killer is not None:
            process.killer.cancel()
        self._processes.pop(process_id, None)
        await self._head.see_to(f"The clean-up after {process_id}", self._clean_up, process)
        self._tell(ProcessExited(process_id, reason, expected or process.is_ending, refused))

    async def _take_up(self, process: _Process, begun: bytes) -> None:
        """Tell that a process is up, and leave that to a later controller."""
        told = msgspec.msgpack.decode(begun, type=ProcessRecord)
        record = process.record = msgspec.structs.replace(told, has_group=process.has_group)
        key = ProcessRecord.key(process.process_id)
        data = msgspec.msgpack.encode(record)
        await self._head.see_to(f"Saving {key}", self._cluster.put, key, data)
        self._nodes.trust(record.node_id)
        self._tell_started(record)
        if process.killer is not None:
            # It was asked to end before it was there.
            self._signal(process, record)

    def _clean_up(self, process: _Process) -> None:
        """Leave nothing of a process, in Ray and on this node. Blocks; may be called again."""
        if process.record is not None:
            # One that was killed has left its socket. On other nodes their agents see to it.
            path = addresses.parse(process.record.address, self.node_id).path
            if path is not None:
                Path(path).unlink(missing_ok=True)
        self._cluster.kill(process.process_id)
        self._cluster.delete(ProcessRecord.key(process.process_id))
        if process.has_group:
            groups.remove_group(self._cluster.namespace, process.process_id)

    async def _end_of(self, process: _Process, ended: Any) -> tuple[str, bool]:
        while True:
            try:
                found: tuple[str, bool] = await ended
                return found
            except ActorUnavailableError:
                # A connection broke; whether the process lives, Ray finds out.
                await asyncio.sleep(_BETWEEN_TRIES_S)
                ended = process.actor.ended.remote()

    async def stop_process(self, process_id: str, timeout_s: Seconds) -> None:
        """Send SIGTERM, and kill after `timeout_s`; an earlier deadline stays."""
        process = self._processes.get(process_id)
        if process is None:
            return
        process.is_ending = True
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + min(timeout_s, 1e6)
        is_first = process.killer is None
        if process.killer is not None:
            if process.kill_at <= kill_at:
                return
            process.killer.cancel()
        process.kill_at = kill_at
        process.killer = loop.call_at(kill_at, self._kill_late, process)
        if is_first and process.record is not None:
            self._signal(process, process.record)

    def _kill_late(self, process: _Process) -> None:
        self._spawn(self._kill(process), f"end of {process.process_id}")

    async def kill_process(self, process_id: str) -> None:
        """Have Ray kill a process, and its process group with it."""
        process = self._processes.get(process_id)
        if process is not None:
            process.is_ending = True
            await self._kill(process)

    async def _kill(self, process: _Process) -> None:
        def kill() -> None:
            if process.process_id in self._processes:
                ray.kill(process.actor, no_restart=True)

        await self._head.see_to(f"Killing {process.process_id}", kill)

    def _signal(self, process: _Process, record: ProcessRecord) -> None:
        work = ask_to_end(self._ask, self._cluster, self._setup.token, record)
        self._spawn(work, f"signal to {process.process_id}")

    def seek(self, missing: Sequence[Missing]) -> None:
        """Show Ray's autoscaler what finds no room."""
        self._seeker.seek(missing)

    async def system_processes(self) -> list[SystemProcess]:
        """Controller, proxies and agents, as Ray knows them."""
        # What was reported before this answer is read before it.
        await asyncio.sleep(0)
        actors = await self._ask(self._cluster.actors)
        crashes = await self._ask(read_crashes, self._cluster, time.time())
        found = [
            SystemProcess(
                actor.name,
                actor.pid,
                actor.restarts,
                NodeID(actor.node_id),
                crashes.get(actor.name, 0),
                self._nodes.trouble(actor.node_id) if actor.name.startswith("agent@") else "",
            )
            for actor in actors.values()
            if fleet.is_permanent(actor.name)
        ]
        # Where the instance was started; if that host is gone, next to the controller.
        for node_id in (self._setup.node_id, self.node_id):
            agent = actors.get(fleet.agent_name(node_id))
            if agent is not None and agent.node_id in self._nodes.nodes:
                found.append(SystemProcess("supervisor", agent.pid, 0, NodeID(node_id)))
                break
        else:
            found.append(SystemProcess("supervisor", 0, 0, NodeID(self._setup.node_id)))
        return sorted(found, key=lambda process: process.name)

    # ------------------------------------------------------------------------------------- end

    async def shutdown(self) -> None:
        """Begin to end everything."""
        if not self._is_ending:
            self._is_ending = True
            self._spawn(self._end_instance(), "end of the instance")

    async def _end_instance(self) -> None:
        try:
            # Not in the one thread: this waits for people's requests.
            end = partial(end_processes, spare=fleet.CONTROLLER)
            await wait_for_end(end, self._cluster, self._setup, _PROXY_GRACE_S)
        except EngineError as error:
            _log.warning("%s", error)
        finally:
            self._events.put_nowait(None)

    # ----------------------------------------------------------------------------------- store

    async def get(self, key: str) -> bytes | None:
        """Read from Ray's store."""
        return await self._ask(self._cluster.get, f"store/{key}")

    async def put(self, key: str, value: bytes) -> None:
        """Write to Ray's store."""
        await self._ask(self._cluster.put, f"store/{key}", value)

    async def delete(self, key: str) -> None:
        """Delete from Ray's store."""
        await self._ask(self._cluster.delete, f"store/{key}")

    async def keys(self, prefix: str) -> list[str]:
        """List keys of Ray's store."""
        found = await self._ask(self._cluster.keys, f"store/{prefix}")
        return [key.removeprefix("store/") for key in found]

    async def close(self) -> None:
        """Let go; processes stay."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._events.put_nowait(None)
        self._head.close()
