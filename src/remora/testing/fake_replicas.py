"""What answers at the addresses of a FakeEngine's processes: replicas without user code.

A test says how they behave: how long a construction takes, whose constructor raises, which one
does not answer any more, how long ongoing requests take.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from remora.errors import ConnectionLostError, MethodNotFoundError, ReplicaStartError
from remora.observe.metrics import counter
from remora.observe.replica_counts import LABELS
from remora.testing.fake_engine import FakeEngine
from remora.types import Seconds
from remora.wire.control import (
    BuildResult,
    DeclaredApplication,
    ReplicaReady,
    ReplicaReconfigure,
    ReplicaSpec,
)
from remora.wire.metrics import MetricsReport
from remora.wire.scaling import LoadWanted, ReplicaLoad

T = TypeVar("T")


@dataclass
class FakeReplica:
    """One replica's process, from inside."""

    process_id: str
    pid: int
    spec: ReplicaSpec | None = None
    is_ready: bool = False
    #: Turned away by a drain.
    is_draining: bool = False
    #: It answers nothing any more.
    is_hung: bool = False
    #: What its health check raises; None: it is well.
    sickness: Exception | None = None
    #: How long its ongoing requests still take when it is told to drain.
    work_s: Seconds = 0.0
    #: Methods that were called, in order.
    calls: list[str] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)
    #: Rank, rank of its node, rank on its node, as it was told last.
    ranks: tuple[int, int, int] = (0, 0, 0)
    #: What it works on, as it reports it.
    ongoing: float = 0.0
    #: What its `record_autoscaling_stats` returns.
    metrics: dict[str, float] | None = None
    #: It reports nothing.
    is_silent: bool = False
    load_changed: asyncio.Event = field(default_factory=asyncio.Event)

    def work_on(self, ongoing: float) -> None:
        """Report that it works on so many requests."""
        self.ongoing = ongoing
        self.load_changed.set()


class FakeReplicas:
    """All replicas of a FakeEngine.

    Attributes:
        construct_s: how long a constructor takes.
        fail_construct: a replica for which it gives a text has a constructor that raises it.
        fail_reconfigure: the same for `reconfigure`.
        docs_path: what they report as the path of their API docs.
        describe: what a builder answers for an application of a config.
        build_s: how long that takes.
        by_id: every replica that was reached, gone ones too.
    """

    def __init__(self, engine: FakeEngine) -> None:
        self.construct_s: Seconds | Callable[[ReplicaSpec], Seconds] = 0.01
        self.fail_construct: Callable[[ReplicaSpec], str] = lambda _spec: ""
        self.fail_reconfigure: Callable[[ReplicaReconfigure], str] = lambda _change: ""
        self.docs_path = ""
        self.describe: Callable[[DeclaredApplication], BuildResult] = _describe_nothing
        self.build_s: Seconds = 0.01
        self.by_id: dict[str, FakeReplica] = {}
        self._engine = engine
        self._links: dict[str, list[_FakeLink]] = {}
        engine.on_exit.append(self._on_exit)

    @property
    def serving(self) -> list[FakeReplica]:
        """Replicas that are alive, ready and not draining."""
        return [
            replica
            for process_id in self._engine.processes
            if (replica := self.by_id.get(process_id)) is not None
            and replica.is_ready
            and not replica.is_draining
        ]

    async def connect(self, address: str) -> _FakeLink:
        """Open a link.

        Raises:
            ConnectionLostError: no process has this address.
        """
        for process_id, process in self._engine.processes.items():
            if process.address == address and process.is_up:
                replica = self.by_id.setdefault(process_id, FakeReplica(process_id, process.pid))
                link = _FakeLink(self, replica)
                open_ones = [each for each in self._links.get(process_id, []) if each.is_open]
                self._links[process_id] = [*open_ones, link]
                return link
        raise ConnectionLostError(f"Nothing answers at {address}")

    def lose_connections(self, process_id: str) -> None:
        """Break every connection to a replica, which lives on."""
        for link in self._links.pop(process_id, []):
            link.close()

    def _on_exit(self, process_id: str) -> None:
        self.lose_connections(process_id)

    async def answer(self, replica: FakeReplica, method: str, body: Any) -> Any:
        """Do what a replica does when `method` is called."""
        replica.calls.append(method)
        if replica.is_hung:
            await asyncio.get_running_loop().create_future()
        match method:
            case "initialize":
                return await self._initialize(replica, body)
            case "check_health":
                if replica.sickness is not None:
                    raise replica.sickness
            case "reconfigure":
                self._reconfigure(replica, body)
                replica.ranks = body.ranks or replica.ranks
            case "describe":
                if not replica.is_ready:
                    raise ReplicaStartError("not ready")
                return replica.spec
            case "drain":
                replica.is_draining = True
                await asyncio.sleep(replica.work_s)
            case "stop":
                replica.is_ready = False
                await self._engine.stop_process(replica.process_id, 1.0)
            case "metrics":
                return _count(replica)
            case "build":
                return await self._build(body.application)
            case unknown:
                raise MethodNotFoundError(f"No control method {unknown!r}")
        return None

    def _reconfigure(self, replica: FakeReplica, change: ReplicaReconfigure) -> None:
        if text := self.fail_reconfigure(change):
            raise ReplicaStartError(text)
        replica.configs.append(change.config.user_config)
        assert replica.spec is not None
        replica.spec = msgspec.structs.replace(
            replica.spec, config=change.config, revision=change.revision
        )

    async def _build(self, application: DeclaredApplication) -> BuildResult:
        await asyncio.sleep(self.build_s)
        return self.describe(application)

    async def _initialize(self, replica: FakeReplica, spec: ReplicaSpec) -> ReplicaReady:
        if not replica.is_ready:
            replica.spec = spec
            replica.ranks = spec.ranks
            delay_s = self.construct_s
            await asyncio.sleep(delay_s if isinstance(delay_s, (int, float)) else delay_s(spec))
            if text := self.fail_construct(spec):
                raise ReplicaStartError(text)
            replica.is_ready = True
            replica.configs.append(spec.config.user_config)
        return ReplicaReady(pid=replica.pid, docs_path=self.docs_path)


def _count(replica: FakeReplica) -> MetricsReport:
    spec = replica.spec
    if spec is None:
        return MetricsReport()
    me = (spec.application, spec.deployment, spec.replica_id)
    rows: dict[tuple[str, ...], float] = {me: len(replica.calls)}
    return MetricsReport((counter("serve_deployment_request_counter", LABELS, rows),))


def _describe_nothing(application: DeclaredApplication) -> BuildResult:
    return BuildResult(error=f"This fake knows no application {application.name!r}.")


class _FakeLink:
    """A connection to one fake replica."""

    def __init__(self, replicas: FakeReplicas, replica: FakeReplica) -> None:
        self._replicas = replicas
        self._replica = replica
        self._calls: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self._is_streaming = False

    @property
    def is_open(self) -> bool:
        """Calls can be made."""
        return not self._is_closed

    async def call(
        self,
        method: str,
        body: msgspec.Struct | None = None,
        reply: type[T] | None = None,
        timeout_s: float | None = None,
    ) -> T | None:
        """Call a method; it is lost when the link closes before the answer."""
        if self._is_closed:
            raise ConnectionLostError(f"The connection to {self._replica.process_id} is closed")
        work = asyncio.ensure_future(self._replicas.answer(self._replica, method, body))
        self._calls.add(work)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait([work])
            if work.cancelled():
                raise ConnectionLostError(f"The connection to {self._replica.process_id} was lost")
            found = work.result()
            return found if reply is None or isinstance(found, reply) else None
        finally:
            self._calls.discard(work)
            work.cancel()

    async def stream(
        self, method: str, body: msgspec.Struct | None, item: type[T]
    ) -> AsyncGenerator[T, None]:
        """Follow the load of a replica; there is no other stream."""
        del item
        replica = self._replica
        if method != "load" or not isinstance(body, LoadWanted):
            raise MethodNotFoundError(f"No control stream {method!r}")
        self._is_streaming = True
        while True:
            if self._is_closed:
                raise ConnectionLostError(f"The connection to {replica.process_id} was lost")
            if not replica.is_silent:
                yield ReplicaLoad(replica.ongoing, replica.metrics)  # type: ignore[misc]
            replica.load_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(body.interval_s):
                    await replica.load_changed.wait()

    def close(self) -> None:
        """Break it."""
        self._is_closed = True
        if self._is_streaming:
            self._replica.load_changed.set()
        for work in self._calls:
            work.cancel()
