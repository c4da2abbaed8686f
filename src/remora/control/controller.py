"""The controller's tick: observe, step, save, apply, publish. Nothing else happens in it.

Theory of operation: whatever happens is posted to an inbox and wakes the loop. A tick drains
the inbox, lets the pure `reconcile.step` decide, saves the state if it changed, hands the actions
to the applier and the snapshot to the publisher. Requests of people take part one per tick, so
that one that cannot be saved is refused alone and has changed nothing.

Rules: no decision is made here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from remora.control.applier import Applier
from remora.control.autoscaler import Autoscaler
from remora.control.builders import Builders
from remora.control.callees import CalleeRegistry
from remora.control.checkpoint import CodeStore, EventLog, Section
from remora.control.metrics import AskReplica, MetricsCollector
from remora.control.missing import missing
from remora.control.policies import Policies
from remora.control.publisher import Publisher
from remora.control.pulse import Pulse
from remora.control.queue_leases import QueueLeases
from remora.control.releases import ReleaseStore
from remora.control.replica_control import Connect, connect_replica
from remora.control.stacks import SavedStacks
from remora.control.state_file import StateFile
from remora.control.sweeps import Sweeps
from remora.core import events as ev
from remora.core import requests
from remora.core.reconcile import Step, step
from remora.core.releases import Record, ReleaseEvent
from remora.core.replica_state import ReplicaState
from remora.core.snapshot import Snapshot
from remora.core.state import ControllerState
from remora.core.status import report
from remora.engine import base
from remora.errors import EngineError, InstanceError, RemoraError
from remora.home import Home
from remora.observe.status_metrics import status_families
from remora.types import ReplicaID, Seconds, is_replica
from remora.wire.health import ControllerHealth
from remora.wire.metrics import Family

_log = logging.getLogger("remora.controller")

#: Backs up the wake-ups that events and `Step.wake_at` give; nothing should depend on it.
BACKUP_S: Seconds = 5.0
#: An engine begins with its nodes; one that has none yet says nothing.
FIRST_EVENT_S: Seconds = 1.0
#: How often code that nobody needs is looked for: that takes a look at every deployment.
SWEEP_S: Seconds = 1.0


@dataclass
class _Inbox:
    """What waits for the next tick."""

    event: ev.AnyEvent
    #: Where the requester waits; None: a fact that nobody waits for.
    answer: asyncio.Future[int] | None = None


class Controller:
    """One instance's controller.

    Concurrency: everything on one event loop.
    """

    def __init__(
        self,
        engine: base.Engine,
        *,
        connect: Connect = connect_replica,
        unix: Callable[[], float] = time.time,
        salt: str = "",
        bound: bool = False,
        home: Home | None = None,
        logging: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a controller; `run` starts it.

        Args:
            engine: connected by `run`.
            connect: opens a link to a replica.
            unix: tells the time of day, for people.
            salt: makes the replica ids of a new state differ from those of earlier states.
            bound: the instance ends with the program that started it, and what that program
                deployed is brought back by no later instance.
            home: the instance's folder, in which stuck replicas save their stacks; None: none do.
            logging: how replicas log whose deployment does not say, as a dict.
        """
        self.engine = engine
        store = Section.of_instance(engine, bound=bound)
        self.code = CodeStore(store)
        self.log = EventLog(store)
        self.releases = ReleaseStore(store)
        self.publisher = Publisher(self._on_acked)
        self.leases = QueueLeases()
        self._policies = Policies(engine, connect)
        self.autoscaler = Autoscaler(self.post, connect, self._policies)
        self.state = ControllerState()
        self._bound = bound
        self._connect = connect
        self._unix = unix
        self._salt = salt
        self._file = StateFile(store)
        self._sweeps = Sweeps(engine, self.releases, bound=bound)
        self.builders = Builders(
            engine, connect, self.code, request=self.request, post=self.post, home=home
        )
        self._applier = Applier(engine, connect, self.code, self.post, SavedStacks(home), logging)
        self.metrics = MetricsCollector(self._replicas, self._families)
        self.callees = CalleeRegistry()
        self._pulse = Pulse()
        self._started_unix_s = unix()
        self._inbox: list[_Inbox] = []
        self._wake = asyncio.Event()
        self._wake_at: Seconds | None = None
        self._unsaved = False
        #: What routers were told last; None: nothing yet.
        self._published: Snapshot | None = None
        self._logged_s: Seconds = 0.0
        self._swept_s: Seconds = 0.0
        self._watchers: set[asyncio.Event] = set()
        self.ready = asyncio.Event()
        #: The engine has said something.
        self._heard = asyncio.Event()

    # ---------------------------------------------------------------------------------- inbox

    def now(self) -> Seconds:
        """The clock of all decisions."""
        return asyncio.get_running_loop().time()

    def post(self, event: ev.AnyEvent) -> None:
        """Tell the controller what happened."""
        self._pulse.woken(self.now())
        self._inbox.append(_Inbox(event))
        self._wake.set()

    async def request(self, request: ev.Request) -> int:
        """Ask for something; returns when it is accepted and saved.

        Returns:
            The number of the latest release, which is this one if it changed what is wanted.

        Raises:
            RemoraError: it is refused, and nothing has changed.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pulse.woken(self.now())
        self._inbox.append(_Inbox(request, answer))
        self._wake.set()
        return await answer

    def watch(self) -> asyncio.Event:
        """An event that is set after every tick, until `unwatch`."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        return changed

    def unwatch(self, changed: asyncio.Event) -> None:
        """End a watch."""
        self._watchers.discard(changed)

    def _replicas(self) -> list[AskReplica]:
        """How to ask each replica that works what it counts."""
        return [
            partial(self._applier.metrics, replica.replica_id, replica.address)
            for app in self.state.applications.values()
            for deployment in app.deployments.values()
            for replica in deployment.in_state(ReplicaState.RUNNING, ReplicaState.DRAINING)
        ]

    def _families(self) -> list[Family]:
        return status_families(report(self.state, self.now()))

    def health(self, memory_bytes: int) -> ControllerHealth:
        """Tell how the controller itself is.

        Args:
            memory_bytes: of its process.
        """
        return self._pulse.health(
            self.now(),
            self._unix(),
            self._started_unix_s,
            num_tasks=len(asyncio.all_tasks()),
            reports=(self.autoscaler.num_router_reports, self.autoscaler.num_replica_reports),
            memory_bytes=memory_bytes,
        )

    def _on_acked(self, version: int) -> None:
        self.post(ev.RoutersAcked(version=version))

    # ------------------------------------------------------------------------------------ life

    async def run(self) -> None:
        """Work until the engine goes away or the task is cancelled.

        Raises:
            EngineError: the engine cannot be reached, or its store cannot be read.
        """
        await self.engine.connect()
        await self._load()
        pump = asyncio.create_task(self._pump(), name="engine events")
        inventory = asyncio.create_task(self._take_inventory(), name="inventory")
        try:
            await self._hear_of_nodes()
            while not pump.done():
                await self.tick()
                await self._pause(pump)
            pump.result()
        finally:
            for task in (pump, inventory):
                task.cancel()
            await asyncio.wait([pump, inventory])
            await self.autoscaler.close()
            await self.builders.close()
            await self._applier.close()
            self._refuse_rest()

    async def _load(self) -> None:
        loaded = await self._file.load(self._unix())
        self.state = loaded.state
        await self.code.load()
        await self.releases.load()
        await self.log.load()
        salt = f"{self._salt}-" if self._salt else ""
        is_first = await self._is_first()
        if not is_first:
            self.leases.freeze()
        started = ev.ControllerStarted(
            unix_s=self._unix(),
            salt=salt,
            new_instance=is_first,
            forget=is_first and self._bound,
            fixed_nodes=self.engine.has_fixed_nodes,
            # Nothing runs yet in an instance that has just started.
            rebuild=not is_first and not loaded.is_whole,
        )
        self._inbox.insert(0, _Inbox(started))

    async def _is_first(self) -> bool:
        """No controller ran before this one in this instance."""
        processes = await self.engine.system_processes()
        return any(p.name == "controller" and p.restarts == 0 for p in processes)

    async def _hear_of_nodes(self) -> None:
        """Wait for what an engine says first: requests are weighed against what there is."""
        try:
            async with asyncio.timeout(FIRST_EVENT_S):
                await self._heard.wait()
        except TimeoutError:
            _log.warning("The engine names no node; whatever is deployed waits for one.")
        # Nothing is decided yet, so that facts can come before what was asked meanwhile.
        self._inbox.sort(key=lambda item: item.answer is not None)

    async def _pump(self) -> None:
        async for event in self.engine.events():
            self._heard.set()
            self._policies.note(event)
            known = None if self.builders.on_engine(event) else _from_engine(event)
            if known is not None:
                self.post(known)
        self._wake.set()

    async def _take_inventory(self) -> None:
        """The engine answers in order: what was alive is reported before this answer."""
        try:
            await self.engine.system_processes()
        except EngineError as error:
            _log.warning("The engine gave no list of its processes: %s", error)
        else:
            self.post(ev.InventoryComplete())

    async def _pause(self, pump: asyncio.Task[None]) -> None:
        """Wait for something to happen or for the time that the last step named."""
        if self._inbox or pump.done():
            return
        now = self.now()
        wait_s = BACKUP_S if self._wake_at is None else min(BACKUP_S, self._wake_at - now)
        self._pulse.pauses(now, max(0.0, wait_s))
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._wake.wait()
        except TimeoutError:
            await self._write_log()

    def _refuse_rest(self) -> None:
        for item in self._inbox:
            if item.answer is not None and not item.answer.done():
                item.answer.set_exception(InstanceError("The controller is ending."))
        self._inbox.clear()

    # ------------------------------------------------------------------------------------ tick

    async def tick(self) -> None:
        """Observe, step, save, apply, publish."""
        self._wake.clear()
        facts, asked = self._observe()
        now = self.now()
        self._pulse.begins(now)
        decided = self._step(facts, asked, now)
        decided_s = self.now() - now
        decided = await self._save(decided, facts, asked, now)
        saved_s = self.now() - now - decided_s
        self.state = decided.state
        self._wake_at = decided.wake_at
        if self._unsaved:
            self._wake_at = min(self._wake_at or now + BACKUP_S, now + BACKUP_S)
        for fact in facts:
            if isinstance(fact, ev.ProcessExited):
                self._applier.forget(fact.replica_id)
        for warning in decided.warnings:
            _log.warning("%s", warning)
        self._applier.apply(decided.actions)
        self.builders.apply(decided.actions)
        self.engine.seek(missing(decided.state))
        if asked is not None and asked.answer is not None and not asked.answer.done():
            asked.answer.set_result(decided.state.release)
        if decided.state.hold_snapshot_until_s is None:
            self._publish(decided.state.routing)
            self.autoscaler.follow(decided.state)
        self.ready.set()
        for changed in self._watchers:
            changed.set()
        await self._tidy()
        self._pulse.ends(self.now(), decided_s, saved_s)

    def _publish(self, snapshot: Snapshot) -> None:
        if snapshot is not self._published:
            self._published = snapshot
            self.leases.limit(snapshot)
            self.publisher.publish(snapshot)

    def _observe(self) -> tuple[list[ev.AnyEvent], _Inbox | None]:
        """Take facts up to the first request that may be accepted, and that request."""
        facts: list[ev.AnyEvent] = []
        number = self.state.last_event_id
        while self._inbox:
            item = self._inbox.pop(0)
            number += 1
            item.event = msgspec.structs.replace(item.event, event_id=number)
            if item.answer is None:
                facts.append(item.event)
            elif not item.answer.cancelled():
                return facts, item
        return facts, None

    def _step(self, facts: list[ev.AnyEvent], asked: _Inbox | None, now: Seconds) -> Step:
        """Let the pure part decide; a request that may not be is refused before."""
        if asked is None:
            return step(self.state, tuple(facts), now)
        # The facts may change whether the request can be granted.
        before = step(self.state, tuple(facts), now).state if facts else self.state
        request = asked.event
        assert isinstance(request, ev.Request)
        refusal = requests.check(before, request)
        if refusal is not None:
            assert asked.answer is not None
            asked.answer.set_exception(refusal)
            return step(self.state, tuple(facts), now)
        return step(self.state, (*facts, request), now)

    async def _save(
        self, decided: Step, facts: list[ev.AnyEvent], asked: _Inbox | None, now: Seconds
    ) -> Step:
        """Save before anything irreversible; what cannot be saved is refused if it can be."""
        accepted = asked is not None and asked.answer is not None and not asked.answer.done()
        self._file.note(decided)
        try:
            if accepted and asked is not None:
                await self._keep_release(decided.state, asked.event)
            await self._file.save(decided.state)
            self._unsaved = False
        except EngineError as error:
            if accepted and asked is not None and asked.answer is not None:
                # Who asked may have gone while it was being saved.
                if not asked.answer.done():
                    text = f"Refused, because it could not be saved; nothing changed. {error}"
                    asked.answer.set_exception(EngineError(text))
                accepted = False
                decided = step(self.state, tuple(facts), now)
                self._file.note(decided)
            if not self._unsaved:
                _log.warning(
                    "The state could not be saved. Everything keeps serving; a controller that "
                    "restarts now knows less. %s",
                    error,
                )
            self._unsaved = True
        events = (*facts, asked.event) if accepted and asked is not None else tuple(facts)
        if events:
            self.log.append(ev.LogEntry(now, events))
        return decided

    async def _keep_release(self, decided: ControllerState, event: ev.AnyEvent) -> None:
        if decided.release > self.state.release and isinstance(event, ReleaseEvent):
            record = Record(number=decided.release, unix_s=self._unix(), event=event)
            await self.releases.put(record)

    async def _tidy(self) -> None:
        """Drop what nobody needs any more, and write the log when it is long."""
        if self.now() - self._swept_s >= SWEEP_S:
            self._swept_s = self.now()
            try:
                await self.code.sweep(self.state.code_keys(), self.releases.code_keys())
            except EngineError as error:
                _log.debug("Old code could not be deleted: %s", error)
            if not self._unsaved:
                await self._sweeps.look(self.state, self.now())
        if self.log.is_due or self.now() - self._logged_s > BACKUP_S:
            await self._write_log()

    async def _write_log(self) -> None:
        self._logged_s = self.now()
        try:
            await self.log.flush()
        except RemoraError as error:
            _log.debug("The event log could not be written: %s", error)


def _from_engine(event: base.EngineEvent) -> ev.AnyEvent | None:
    """Say in the controller's words what the engine said; None: it concerns no replica."""
    match event:
        case base.ProcessStarted(process_id=process_id):
            if not is_replica(process_id):
                return None
            return ev.ProcessStarted(
                replica_id=ReplicaID(process_id),
                address=event.address,
                pid=event.pid,
                node_id=event.node_id,
            )
        case base.ProcessPreparing(process_id=process_id):
            if not is_replica(process_id):
                return None
            return ev.ProcessPreparing(replica_id=ReplicaID(process_id), what=event.what)
        case base.ProcessExited(process_id=process_id):
            if not is_replica(process_id):
                return None
            return ev.ProcessExited(
                replica_id=ReplicaID(process_id), reason=event.reason, expected=event.expected
            )
        case base.NodeJoined(node=node):
            return ev.NodeJoined(
                node_id=node.node_id, resources=dict(node.resources), labels=dict(node.labels)
            )
        case base.NodeDraining(node_id=node_id):
            return ev.NodeDraining(node_id=node_id)
        case base.NodeLost(node_id=node_id):
            return ev.NodeLost(node_id=node_id)
