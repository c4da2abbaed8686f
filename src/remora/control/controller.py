"""The controller's tick: observe, step, save, apply, publish. Nothing else happens in it.

Theory of operation: whatever happens is posted to an inbox and wakes the loop. A tick drains
the inbox, lets the pure `reconcile.step` decide, saves the state if it changed, hands the actions
to the applier and the snapshot to the publisher.

Rules: no decision is made here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from remora.control.applier import Applier
from remora.control.autoscaler import Autoscaler
from remora.control.builders import Builders
from remora.control.callees import CalleeRegistry
from remora.control.checkpoint import Section
from remora.control.engine_events import EngineFeed, from_engine, is_first_controller
from remora.control.inbox import Inbox, Item
from remora.control.memory import Memory
from remora.control.metrics import AskReplica, MetricsCollector
from remora.control.missing import missing
from remora.control.policies import Policies
from remora.control.publisher import Publisher
from remora.control.pulse import Pulse
from remora.control.queue_leases import QueueLeases
from remora.control.replica_control import Connect, connect_replica
from remora.control.stacks import SavedStacks
from remora.control.sweeps import Sweeps
from remora.core import events as ev
from remora.core import requests
from remora.core.health import changes_nothing
from remora.core.reconcile import Step, step
from remora.core.replica_state import ReplicaState
from remora.core.snapshot import Snapshot
from remora.core.state import ControllerState
from remora.core.status import report
from remora.engine import base
from remora.errors import EngineError, InstanceError
from remora.home import Home
from remora.observe.status_metrics import status_families
from remora.types import Seconds
from remora.wire.health import ControllerHealth
from remora.wire.metrics import Family

_log = logging.getLogger("remora.controller")

#: Backs up the wake-ups that events and `Step.wake_at` give; nothing should depend on it.
BACKUP_S: Seconds = 5.0
#: How often it is looked for what nobody needs: that takes a look at every deployment.
SWEEP_S: Seconds = 1.0


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
        tracing: Mapping[str, Any] | None = None,
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
            tracing: where replicas trace, as a dict.
        """
        self.engine = engine
        store = Section.of_instance(engine, bound=bound)
        self._memory = Memory(store, unix)
        self.code = self._memory.code
        self.log = self._memory.log
        self.releases = self._memory.releases
        self.publisher = Publisher(self._on_acked)
        self.leases = QueueLeases()
        self._policies = Policies(engine, connect)
        self.autoscaler = Autoscaler(self.post, connect, self._policies)
        self.state = ControllerState()
        self._bound = bound
        self._connect = connect
        self._unix = unix
        self._salt = salt
        self._sweeps = Sweeps(engine, self.releases, bound=bound)
        self.builders = Builders(
            engine, connect, self.code, request=self.request, post=self.post, home=home
        )
        self.metrics = MetricsCollector(self._replicas, self._families)
        self._applier = Applier(
            engine,
            connect,
            self.code,
            self.post,
            SavedStacks(home),
            logging,
            tracing,
            self.metrics.keep,
        )
        self.callees = CalleeRegistry()
        self._pulse = Pulse()
        self._started_unix_s = unix()
        self._inbox = Inbox()
        self._wake_at: Seconds | None = None
        #: What routers were told last; None: nothing yet.
        self._published: Snapshot | None = None
        self._swept_s: Seconds = 0.0
        self._watchers: set[asyncio.Event] = set()
        self.ready = asyncio.Event()

    # ---------------------------------------------------------------------------------- inbox

    def now(self) -> Seconds:
        """The clock of all decisions."""
        return asyncio.get_running_loop().time()

    def post(self, event: ev.AnyEvent) -> None:
        """Tell the controller what happened."""
        self._pulse.woken(self.now())
        self._inbox.post(event)

    async def request(self, request: ev.Request) -> int:
        """Ask for something; returns when it is accepted and saved.

        Returns:
            The number of the latest release, which is this one if it changed what is wanted.

        Raises:
            RemoraError: it is refused, and nothing has changed.
        """
        self._pulse.woken(self.now())
        return await self._inbox.ask(request)

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
            for _, _, replica in self.state.replicas()
            if replica.state in (ReplicaState.RUNNING, ReplicaState.DRAINING)
        ]

    def _families(self) -> list[Family]:
        return [*status_families(report(self.state, self.now())), *self._policies.families()]

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
        feed = EngineFeed(self.engine, self._on_engine, self.post, self._inbox.news.set)
        try:
            await feed.wait_first()
            # Nothing is decided yet, so that facts can come before what was asked meanwhile.
            self._inbox.move_facts_first()
            while not feed.is_over:
                await self.tick()
                await self._pause(feed)
            feed.raise_failure()
        finally:
            await feed.close()
            await self.autoscaler.close()
            await self.builders.close()
            await self._applier.close()
            self._inbox.refuse_all(InstanceError("The controller is ending."))

    async def _load(self) -> None:
        loaded = await self._memory.load()
        self.state = loaded.state
        salt = f"{self._salt}-" if self._salt else ""
        is_first = await is_first_controller(self.engine)
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
        self._inbox.put_first(started)

    def _on_engine(self, event: base.EngineEvent) -> None:
        self._policies.note(event)
        known = None if self.builders.on_engine(event) else from_engine(event)
        if known is not None:
            self.post(known)

    async def _pause(self, feed: EngineFeed) -> None:
        """Wait for something to happen or for the time that the last step named."""
        if not self._inbox.is_empty or feed.is_over:
            return
        now = self.now()
        wait_s = BACKUP_S if self._wake_at is None else min(BACKUP_S, self._wake_at - now)
        self._pulse.pauses(now, max(0.0, wait_s))
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._inbox.news.wait()
        except TimeoutError:
            await self._memory.write_log()

    # ------------------------------------------------------------------------------------ tick

    async def tick(self) -> None:
        """Observe, step, save, apply, publish."""
        self._inbox.news.clear()
        facts, asked = self._inbox.take(self.state.last_event_id)
        now = self.now()
        self._pulse.begins(now)
        decided = self._step(facts, asked, now)
        decided_s = self.now() - now
        decided = await self._save(decided, facts, asked, now)
        saved_s = self.now() - now - decided_s
        self.state = decided.state
        self._wake_at = decided.wake_at
        if self._memory.is_behind:
            self._wake_at = min(self._wake_at or now + BACKUP_S, now + BACKUP_S)
        for fact in facts:
            if isinstance(fact, ev.ProcessExited):
                self._applier.forget(fact.replica_id)
            elif isinstance(fact, ev.ReplicaDescribed) and fact.code_key:
                # The state refers to it now, or will not.
                self.code.unpin([fact.code_key])
        for warning in decided.warnings:
            _log.warning("%s", warning)
        self._applier.apply(decided.actions)
        self.builders.apply(decided.actions)
        self.engine.seek(missing(decided.state))
        if asked is not None:
            asked.accept(decided.state.release)
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

    def _step(self, facts: list[ev.AnyEvent], asked: Item | None, now: Seconds) -> Step:
        """Let the pure part decide; a request that may not be is refused before."""
        if asked is None:
            return step(self.state, tuple(facts), now)
        # The facts may change whether the request can be granted.
        before = step(self.state, tuple(facts), now).state if facts else self.state
        request = asked.event
        assert isinstance(request, ev.Request)
        refusal = requests.check(before, request)
        if refusal is not None:
            asked.refuse(refusal)
            return step(self.state, tuple(facts), now)
        return step(self.state, (*facts, request), now)

    async def _save(
        self, decided: Step, facts: list[ev.AnyEvent], asked: Item | None, now: Seconds
    ) -> Step:
        """Save before anything irreversible; what cannot be saved is refused if it can be."""
        accepted = asked if asked is not None and asked.is_awaited else None
        event = None if accepted is None else accepted.event
        try:
            await self._memory.save(decided, self.state, event)
        except EngineError as error:
            if accepted is not None:
                # Who asked may have gone while it was being saved.
                text = f"Refused, because it could not be saved; nothing changed. {error}"
                accepted.refuse(EngineError(text))
                event = None
                decided = step(self.state, tuple(facts), now)
                self._memory.note(decided)
        # One check of each replica every few seconds would push out all that explains anything.
        news = tuple(fact for fact in facts if not changes_nothing(self.state, fact))
        events = news if event is None else (*news, event)
        if events:
            self.log.append(ev.LogEntry(now, events))
        return decided

    async def _tidy(self) -> None:
        """Drop what nobody needs any more, and write the log when it is long."""
        if self.now() - self._swept_s >= SWEEP_S:
            self._swept_s = self.now()
            await self._memory.drop_code(self.state)
            if not self._memory.is_behind:
                await self._sweeps.look(self.state, self.now())
        await self._memory.write_log_if_due()
