"""What the controller asks of a replica, from its construction to its end.

The control methods, by name; the replica itself counts requests and knows nothing of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from remora.context import (
    DeploymentActorContext,
    GangContext,
    ReplicaContext,
    ReplicaID,
    ReplicaRank,
)
from remora.errors import RemoraError, ReplicaStartError
from remora.observe.batches import BatchCounters
from remora.observe.replica_counts import LABELS, batch_families, model_families
from remora.observe.tracebacks import user_traceback
from remora.observe.tracing import active
from remora.replica.construction import construct
from remora.replica.promises import promises_of
from remora.replica.self_report import SelfReport
from remora.replica.surroundings import Place
from remora.replica.user_code import UserCode
from remora.transport.control import ControlHandler
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.control import HealthCheck, ReplicaReady, ReplicaReconfigure, ReplicaSpec
from remora.wire.holds import Gang
from remora.wire.messages import Promises
from remora.wire.metrics import Family, MetricsReport
from remora.wire.scaling import LoadWanted

if TYPE_CHECKING:
    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")


class Life:
    """The life of one replica, as the controller directs it.

    Attributes:
        methods: the control methods, by name.
    """

    def __init__(self, replica: Replica, place: Place) -> None:
        """Make what directs a replica that is not constructed yet.

        Args:
            replica: whose life.
            place: the process that it runs in.
        """
        self._replica = replica
        self._place = place
        self._spec: ReplicaSpec | None = None
        self._context: ReplicaContext | None = None
        self._report = SelfReport(replica.announce)
        self._construction: asyncio.Task[ReplicaReady] | None = None
        self.methods: Mapping[str, ControlHandler] = {
            "initialize": self._initialize,
            "check_health": self._check_health,
            "reconfigure": self._reconfigure,
            "describe": self._describe,
            "drain": self._drain,
            "load": self._load,
            "stop": self._stop,
            "metrics": self._metrics,
        }

    async def end(self) -> None:
        """Run the user's shutdown code, and let go of what it held."""
        replica = self._replica
        code, replica.code = replica.code, None
        if code is not None:
            self._enter()
            await code.destroy()
        if self._context is not None:
            await self._context.held_models.close()
            self._place.leave(self._context)
        self.cut_off()
        if (tracing := active()) is not None:
            # Not every engine lets a process end by itself.
            await tracing.hand_over()

    def cut_off(self) -> None:
        """Nothing is watched or asked any more."""
        self._replica.watchdog.stop()
        self._place.leave_watch()
        self._report.stop()

    # -- control methods ----------------------------------------------------------------------

    async def _initialize(self, body: bytes) -> bytes:
        if self._construction is None:
            self._construction = self._replica.loop.create_task(
                self._construct(unpack(body, ReplicaSpec))
            )
        # The construction outlives a controller that dies while it waits.
        return pack(await asyncio.shield(self._construction))

    async def _construct(self, spec: ReplicaSpec) -> ReplicaReady:
        replica, place = self._replica, self._place
        place.settle(spec.surroundings)
        self._spec = spec
        self._limit_to(spec.config.max_ongoing_requests)
        replica.on_answered = place.log_as(spec.config.logging_config)
        context = self._context = _context_of(spec, replica.max_ongoing)
        context.held_models.tell = self._tell_models
        place.enter(context)
        try:
            code = replica.code = await construct(spec)
            await self._report.begin(code, spec.config.request_router_config)
        except RemoraError:
            raise
        except (Exception, SystemExit) as error:
            raise ReplicaStartError(user_traceback(error)) from error
        # Only now may the module that counts FastAPI's threads be there.
        place.limit_threads(replica.max_ongoing)
        context.servable_object = code.target
        place.on_constructed()
        replica.watchdog.start()
        place.watch(spec.config.health_check_timeout_s)
        promises = promises_of(code)
        if promises != Promises():
            replica.promises = pack(promises)
        replica.turns_away = False
        replica.call_back()
        return ReplicaReady(pid=os.getpid(), docs_path=code.docs_path)

    def _ready(self) -> tuple[UserCode, ReplicaSpec]:
        code, spec = self._replica.code, self._spec
        if code is None or spec is None:
            raise ReplicaStartError(f"Replica {self._replica.replica_id} is not ready")
        return code, spec

    async def _check_health(self, body: bytes) -> bytes:
        code, _ = self._ready()
        self._place.tend_log()
        self._enter()
        if body:
            self._place.watch(unpack(body, HealthCheck).timeout_s)
        await code.check_health()
        return b""

    async def _reconfigure(self, body: bytes) -> bytes:
        code, spec = self._ready()
        self._enter()
        change = unpack(body, ReplicaReconfigure)
        config, old = change.config, spec.config
        moved = change.ranks is not None and change.ranks != spec.ranks
        if change.ranks is not None:
            self._take_ranks(change.ranks, change.world_size)
        assert self._spec is not None
        wanted = config.user_config
        if wanted is not None and (wanted != old.user_config or (moved and code.wants_its_rank)):
            await code.reconfigure(wanted, ReplicaRank(*self._spec.ranks))
        self._limit_to(config.max_ongoing_requests)
        self._report.follow(config.request_router_config)
        if config.logging_config != old.logging_config:
            self._replica.on_answered = self._place.log_as(config.logging_config)
        # Of what it is now: there may have been another change meanwhile.
        self._spec = msgspec.structs.replace(self._spec, config=config, revision=change.revision)
        self._replica.call_back()
        return b""

    async def _describe(self, body: bytes) -> bytes:
        return pack(self._ready()[1])

    async def _drain(self, body: bytes) -> bytes:
        await self._replica.drain()
        return b""

    async def _load(self, body: bytes) -> AsyncIterator[bytes]:
        # Few replicas are asked for it.
        from remora.replica.load_report import LoadReport

        self._enter()
        async with aclosing(LoadReport(self._replica, unpack(body, LoadWanted)).follow()) as loads:
            async for load in loads:
                yield pack(load)

    async def _stop(self, body: bytes) -> bytes:
        await self._replica.stop()
        context = self._context
        if context is None:
            return pack(MetricsReport())
        # Nobody can ask any more, and a counter is not to lose what it counted last.
        last = context.user_metrics.families(LABELS, self._labels(context), lasting=True)
        return pack(MetricsReport(tuple(last)))

    async def _metrics(self, body: bytes) -> bytes:
        context = self._context
        if context is None:
            return pack(MetricsReport())
        return pack(MetricsReport(tuple(self._families(context))))

    def _families(self, context: ReplicaContext) -> list[Family]:
        counted = self._replica
        replica = self._labels(context)
        functions: dict[str, tuple[BatchCounters, int]] = {}
        for each in context.batching:
            total, waiting = functions.get(each.name, (BatchCounters(), 0))
            waiting += each.count_into(total)
            functions[each.name] = (total, waiting)
        loaders = context.held_models.loaders
        loaded = [model_id for each in loaders for model_id in each.loaded()]
        return [
            *counted.counts.families(replica, counted.ongoing, counted.max_ongoing),
            *model_families(replica, (each.counts for each in loaders), loaded),
            *batch_families(replica, functions),
            *context.user_metrics.families(LABELS, replica),
        ]

    def _labels(self, context: ReplicaContext) -> tuple[str, str, str]:
        return context.app_name, context.deployment, self._replica.replica_id

    def _tell_models(self, model_ids: list[str]) -> None:
        """Requests for these models had better come here."""
        try:
            self._replica.announce(models=model_ids)
        except RemoraError as error:
            _log.warning("Routers do not hear of new models: %s", error)

    def _enter(self) -> None:
        """Let the user's code below the running task know where it runs."""
        if self._context is not None:
            self._place.enter(self._context)

    def _take_ranks(self, ranks: tuple[int, int, int], world_size: int) -> None:
        assert self._spec is not None
        self._spec = msgspec.structs.replace(self._spec, ranks=ranks)
        if self._context is not None:
            self._context.rank = ReplicaRank(*ranks)
            self._context.world_size = world_size

    def _limit_to(self, max_ongoing: int) -> None:
        """Take `max_ongoing` requests at a time, and as many threads for plain functions."""
        replica = self._replica
        if max_ongoing != replica.max_ongoing:
            replica.threads.shutdown(wait=False)
            replica.threads = ThreadPoolExecutor(max_ongoing, "remora-handler")
            replica.max_ongoing = max_ongoing
            if self._context is not None:
                self._context.max_ongoing_requests = max_ongoing
            self._place.limit_threads(max_ongoing)


def _context_of(spec: ReplicaSpec, max_ongoing: int) -> ReplicaContext:
    return ReplicaContext(
        replica_id=ReplicaID(spec.replica_id),
        deployment_id=DeploymentID(spec.deployment, spec.application),
        rank=ReplicaRank(*spec.ranks),
        gang_context=_gang_context(spec.gang),
        actors=spec.config.actors,
        actor=_actor_context(spec),
        world_size=spec.world_size,
        code_version=spec.code_version,
        max_ongoing_requests=max_ongoing,
    )


def _gang_context(gang: Gang | None) -> GangContext | None:
    if gang is None:
        return None
    members: list[str] = list(gang.members)
    return GangContext(gang.gang_id, gang.rank, len(members), members, gang.gang_id)


def _actor_context(spec: ReplicaSpec) -> DeploymentActorContext | None:
    config = spec.config
    if not config.actor_of:
        return None
    owner = DeploymentID(config.actor_of, spec.application)
    return DeploymentActorContext(owner, config.actor_name, spec.code_version)
