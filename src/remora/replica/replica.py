"""A replica: one copy of the user's code, its limit, and its life from start to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from remora.context import DeploymentActorContext, GangContext, ReplicaContext, ReplicaRank
from remora.core.room import is_called_back
from remora.errors import RemoraError, ReplicaStartError
from remora.observe.batches import BatchCounters
from remora.observe.replica_counts import ReplicaCounts, batch_families, model_families
from remora.replica.connection import ReplicaConnection
from remora.replica.http_requests import HttpRequests
from remora.replica.notices import Notices
from remora.replica.promises import promises_of
from remora.replica.requests import RequestRunner
from remora.replica.self_report import SelfReport
from remora.replica.surroundings import OnAnswered, OwnProcess, Place
from remora.replica.user_code import UserCode, user_traceback
from remora.replica.watchdog import LoopWatchdog
from remora.transport.control import ControlHandler
from remora.types import DeploymentID, Seconds
from remora.wire.codec import pack, unpack
from remora.wire.control import GangSpec, HealthCheck, ReplicaReady, ReplicaReconfigure, ReplicaSpec
from remora.wire.framing import MAX_LOAD
from remora.wire.messages import FrameKind, Promises
from remora.wire.metrics import Family, MetricsReport
from remora.wire.scaling import LoadWanted

if TYPE_CHECKING:
    from remora.replica.grpc_requests import GrpcRequests
    from remora.replica.websocket_requests import WebSocketRequests

_log = logging.getLogger("remora.replica")

#: What the handlers of open WebSockets have to clean up when the replica stops.
CLOSE_WEBSOCKETS_S: Seconds = 0.5


class Replica:
    """Owns the user's object and counts what it works on.

    Attributes:
        ongoing: requests begun and not ended.
        max_ongoing: how many may be.
        counts: what became of them.
        on_answered: told of each; None: nobody wants to know.
        turns_away: no new requests (not ready yet, draining, or stopping).
        turned_away: callers that are told when there is room again (turned away, or asked).
        control: the control methods, by name.
    """

    def __init__(self, replica_id: str, place: Place | None = None) -> None:
        """Make a replica on the running loop.

        Args:
            replica_id: never used twice.
            place: the process that it runs in; None: one of its own.
        """
        self._place = place or OwnProcess()
        self._context: ReplicaContext | None = None
        self.loop = asyncio.get_running_loop()
        self.replica_id = replica_id
        self.ongoing = 0
        self.max_ongoing = 1
        self.counts = ReplicaCounts()
        self.on_answered: OnAnswered | None = None
        self.turns_away = True
        self.turned_away: set[ReplicaConnection] = set()
        self.code: UserCode | None = None
        self.spec: ReplicaSpec | None = None
        self.threads = ThreadPoolExecutor(1)
        self.requests = RequestRunner(self)
        self.http_requests = HttpRequests(self, self.requests)
        self.watchdog = LoopWatchdog(self.loop, lambda: self.ongoing > 0)
        #: Called when a request begins on an idle replica.
        self.on_busy: Callable[[], None] = self.watchdog.arm
        self._busy_listeners: set[Callable[[], object]] = set()
        self.stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connections: set[ReplicaConnection] = set()
        #: What the code promises its callers, packed; None: nothing.
        self.promises: bytes | None = None
        self.notices = Notices(self.loop, self._connections)
        self._report = SelfReport(self.announce)
        self._construction: asyncio.Task[ReplicaReady] | None = None
        self.control: Mapping[str, ControlHandler] = {
            "initialize": self._initialize,
            "check_health": self._check_health,
            "reconfigure": self._reconfigure,
            "describe": self._describe,
            "drain": self._drain,
            "load": self._load,
            "stop": self._stop,
            "metrics": self._metrics,
        }

    # What few replicas are asked for is imported at the first request of its kind: a replica is
    # to be there in tens of milliseconds.

    @cached_property
    def websockets(self) -> WebSocketRequests:
        """Serves WebSockets."""
        from remora.replica.websocket_requests import WebSocketRequests

        return WebSocketRequests(self, self.requests)

    @cached_property
    def grpc_requests(self) -> GrpcRequests:
        """Answers gRPC."""
        from remora.replica.grpc_requests import GrpcRequests

        return GrpcRequests(self, self.requests)

    def accept(self, token: str = "") -> ReplicaConnection:
        """Make the protocol of a new connection, whose peer must present `token`."""
        connection = ReplicaConnection(self, token)
        self._connections.add(connection)
        return connection

    def forget(self, connection: ReplicaConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self.turned_away.discard(connection)

    def announce(
        self,
        *,
        models: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell all callers what changed of this replica; see `Notices.announce`."""
        self.notices.announce(models=models, metadata=metadata, stats=stats)

    def tell_busy(self, listener: Callable[[], object], *, wanted: bool) -> None:
        """Call `listener` whenever a request begins on an idle replica, or not any more."""
        if wanted:
            self._busy_listeners.add(listener)
        else:
            self._busy_listeners.discard(listener)
        # Nobody pays for what nobody wants.
        self.on_busy = self._on_busy if self._busy_listeners else self.watchdog.arm

    def _on_busy(self) -> None:
        self.watchdog.arm()
        for listener in self._busy_listeners:
            listener()

    def on_request_ended(self, connection: ReplicaConnection) -> None:
        """A slot is free: tell those who were turned away, or whoever waits for idleness.

        The caller of that request, `connection`, has its answer, which tells of this slot. But
        the answer leaves before the slot is free, so its next request may have been turned away
        in between: then the answer has told it nothing.
        """
        self.ongoing -= 1
        if self.turned_away and not self.turns_away and self.ongoing < self.max_ongoing:
            self._call_back(connection)
        if self.turns_away and self.ongoing == 0:
            self._idle.set()

    def tell_of_room(self, connection: ReplicaConnection) -> None:
        """Tell a caller when there is room for more: now, or once a request ends."""
        self.turned_away.add(connection)
        if self.ongoing < self.max_ongoing and not self.turns_away:
            self._call_back()

    def _call_back(self, answered: ReplicaConnection | None = None) -> None:
        room = min(self.max_ongoing - self.ongoing, MAX_LOAD)
        told = [
            c
            for c in self.turned_away
            if is_called_back(room, has_answer=c is answered, was_turned_away=c.was_rejected)
        ]
        for connection in told:
            connection.was_rejected = False
            connection.write(FrameKind.FREED, 0, load=room)
        self.turned_away.difference_update(told)

    async def drain(self) -> None:
        """Turn new requests away and wait until those begun have ended."""
        self.turns_away = True
        for connection in self._connections:
            connection.say_bye()
        if self.ongoing:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        """Run the user's shutdown code; the process ends after it."""
        self.turns_away = True
        await self._close_websockets()
        code, self.code = self.code, None
        if code is not None:
            self._enter()
            await code.destroy()
        if self._context is not None:
            await self._context.held_models.close()
            self._place.leave(self._context)
        self.watchdog.stop()
        self._place.leave_watch()
        self._report.stop()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.stopped.set()

    def cut_off(self) -> None:
        """End everything at once, as the end of the process would."""
        self.turns_away = True
        self.watchdog.stop()
        self._place.leave_watch()
        self._report.stop()
        self.threads.shutdown(wait=False, cancel_futures=True)
        for connection in list(self._connections):
            connection.close()

    async def _close_websockets(self) -> None:
        """End the WebSockets that are still open: their time is up, or no time was given."""
        handlers = [task for one in self._connections for task in one.close_websockets()]
        if not handlers:
            return
        _, late = await asyncio.wait(handlers, timeout=CLOSE_WEBSOCKETS_S)
        for task in late:
            task.cancel()

    # -- control methods ----------------------------------------------------------------------

    async def _initialize(self, body: bytes) -> bytes:
        if self._construction is None:
            self._construction = self.loop.create_task(self._construct(unpack(body, ReplicaSpec)))
        # The construction outlives a controller that dies while it waits.
        return pack(await asyncio.shield(self._construction))

    async def _construct(self, spec: ReplicaSpec) -> ReplicaReady:
        self._place.settle(spec.surroundings)
        self.spec = spec
        self._limit_to(spec.config.max_ongoing_requests)
        self.on_answered = self._place.log_as(spec.config.logging_config)
        context = self._context = ReplicaContext(
            replica_id=spec.replica_id,
            deployment_id=DeploymentID(spec.deployment, spec.application),
            rank=ReplicaRank(*spec.ranks),
            gang_context=_gang_context(spec.gang),
            actors=spec.config.actors,
            actor=_actor_context(spec),
            world_size=spec.world_size,
            code_version=spec.code_version,
            max_ongoing_requests=self.max_ongoing,
        )
        context.held_models.tell = self._tell_models
        self._place.enter(context)
        try:
            self.code = await UserCode.construct(spec)
            await self._report.begin(self.code, spec.config.request_router_config)
        except RemoraError:
            raise
        except (Exception, SystemExit) as error:
            raise ReplicaStartError(user_traceback(error)) from error
        # Only now may the module that counts FastAPI's threads be there.
        self._place.limit_threads(self.max_ongoing)
        context.servable_object = self.code.target
        self._place.on_constructed()
        self.watchdog.start()
        self._place.watch(spec.config.health_check_timeout_s)
        promises = promises_of(self.code)
        if promises != Promises():
            self.promises = pack(promises)
        self.turns_away = False
        self._call_back()
        return ReplicaReady(pid=os.getpid(), docs_path=self.code.docs_path)

    async def _check_health(self, body: bytes) -> bytes:
        if self.code is None:
            raise ReplicaStartError(f"Replica {self.replica_id} is not ready")
        self._place.tend_log()
        self._enter()
        if body:
            self._place.watch(unpack(body, HealthCheck).timeout_s)
        await self.code.check_health()
        return b""

    async def _reconfigure(self, body: bytes) -> bytes:
        if self.code is None or self.spec is None:
            raise ReplicaStartError(f"Replica {self.replica_id} is not ready")
        self._enter()
        change = unpack(body, ReplicaReconfigure)
        config = change.config
        old = self.spec.config
        moved = change.ranks is not None and change.ranks != self.spec.ranks
        if change.ranks is not None:
            self._take_ranks(change.ranks, change.world_size)
        wanted = config.user_config
        if wanted is not None and (
            wanted != old.user_config or (moved and self.code.wants_its_rank)
        ):
            await self.code.reconfigure(wanted, ReplicaRank(*self.spec.ranks))
        self._limit_to(config.max_ongoing_requests)
        self._report.follow(config.request_router_config)
        if config.logging_config != old.logging_config:
            self.on_answered = self._place.log_as(config.logging_config)
        self.spec = msgspec.structs.replace(self.spec, config=config, revision=change.revision)
        if self.turned_away and self.ongoing < self.max_ongoing:
            self._call_back()
        return b""

    async def _describe(self, body: bytes) -> bytes:
        if self.code is None or self.spec is None:
            raise ReplicaStartError(f"Replica {self.replica_id} is not ready")
        return pack(self.spec)

    async def _drain(self, body: bytes) -> bytes:
        await self.drain()
        return b""

    async def _load(self, body: bytes) -> AsyncIterator[bytes]:
        # Few replicas are asked for it.
        from remora.replica.load_report import LoadReport

        self._enter()
        async with aclosing(LoadReport(self, unpack(body, LoadWanted)).follow()) as loads:
            async for load in loads:
                yield pack(load)

    async def _stop(self, body: bytes) -> bytes:
        await self.stop()
        return b""

    async def _metrics(self, body: bytes) -> bytes:
        context = self._context
        if context is None:
            return pack(MetricsReport())
        return pack(MetricsReport(tuple(self._families(context))))

    def _families(self, context: ReplicaContext) -> list[Family]:
        replica = (context.app_name, context.deployment, self.replica_id)
        functions: dict[str, tuple[BatchCounters, int]] = {}
        for each in context.batching:
            total, waiting = functions.get(each.name, (BatchCounters(), 0))
            waiting += each.count_into(total)
            functions[each.name] = (total, waiting)
        loaders = context.held_models.loaders
        loaded = [model_id for each in loaders for model_id in each.loaded()]
        return [
            *self.counts.families(replica, self.ongoing, self.max_ongoing),
            *model_families(replica, (each.counts for each in loaders), loaded),
            *batch_families(replica, functions),
        ]

    def _tell_models(self, model_ids: list[str]) -> None:
        """Requests for these models had better come here."""
        try:
            self.announce(models=model_ids)
        except RemoraError as error:
            _log.warning("Routers do not hear of new models: %s", error)

    def _enter(self) -> None:
        """Let the user's code below the running task know where it runs."""
        if self._context is not None:
            self._place.enter(self._context)

    def _take_ranks(self, ranks: tuple[int, int, int], world_size: int) -> None:
        assert self.spec is not None
        self.spec = msgspec.structs.replace(self.spec, ranks=ranks)
        if self._context is not None:
            self._context.rank = ReplicaRank(*ranks)
            self._context.world_size = world_size

    def _limit_to(self, max_ongoing: int) -> None:
        """Take `max_ongoing` requests at a time, and as many threads for plain functions."""
        if max_ongoing != self.max_ongoing:
            self.threads.shutdown(wait=False)
            self.threads = ThreadPoolExecutor(max_ongoing, "remora-handler")
            self.max_ongoing = max_ongoing
            if self._context is not None:
                self._context.max_ongoing_requests = max_ongoing
            self._place.limit_threads(max_ongoing)


def _gang_context(gang: GangSpec | None) -> GangContext | None:
    if gang is None:
        return None
    members = list(gang.members)
    return GangContext(gang.gang_id, gang.rank, len(members), members, gang.gang_id)


def _actor_context(spec: ReplicaSpec) -> DeploymentActorContext | None:
    config = spec.config
    if not config.actor_of:
        return None
    owner = DeploymentID(config.actor_of, spec.application)
    return DeploymentActorContext(owner, config.actor_name, spec.code_version)
