"""Imports applications, each in a process of its own that ends when it has described one.

Theory of operation: the controller never imports what users wrote. The engine starts a builder; when
it is up it is asked over the wire, as a replica is, and answers with a description or with the
traceback of what went wrong. What it answers is posted as an event.

Rules: decides nothing. A builder whose answer nobody waits for any more is ended.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

from remora.config import with_resources
from remora.control.checkpoint import CodeStore
from remora.control.last_words import BuilderLog
from remora.control.replica_control import Connect
from remora.core import events as ev
from remora.core.actions import Action, BuildApplication, CancelBuilds
from remora.core.submission import ApplicationRequest, DeploymentRequest
from remora.engine import base
from remora.errors import ConnectionLostError, EngineError, RemoraError
from remora.home import Home
from remora.types import Seconds, is_replica
from remora.wire.control import ApplicationSpec, BuildRequest, BuildResult, DeclaredApplication

_log = logging.getLogger("remora.controller")

BUILDER_ENTRYPOINT = "remora.build.builder:main"
#: How the id of a builder begins; that of a replica may, too.
PREFIX = "builder-"
#: Imports at a time: each may need as much memory as a replica.
AT_A_TIME = 4
#: Besides, for plans: one that hangs keeps no deploy waiting.
PLANNED_AT_A_TIME = 2
#: For an import that only a plan waits for. What is deployed may take as long as it likes: status
#: shows it, and the next config ends it.
PLAN_LIMIT_S: Seconds = 120.0
#: What a builder gets for its end; whatever it holds, nobody needs it.
_EXIT_S: Seconds = 1.0


#: The end of a process is known to the kernel before its connections are closed: the engine says how
#: it ended soon after.
_EXIT_TOLD_S: Seconds = 5.0


class _Refused(ConnectionLostError):
    """The node where a builder was to be could not take it."""


class _Birth:
    """A builder that was asked for."""

    def __init__(self, mark: int) -> None:
        #: Its address, once it is up.
        self.up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.reason = ""
        self.pid: int | None = None
        #: How long the log was before it.
        self.mark = mark


class BuildError(RemoraError):
    """An import path leads to no application."""


class Builders:
    """All builders of one controller. One event loop."""

    def __init__(
        self,
        engine: base.Engine,
        connect: Connect,
        code: CodeStore,
        *,
        request: Callable[[ev.Request], Awaitable[object]],
        post: Callable[[ev.AnyEvent], None],
        home: Home | None = None,
    ) -> None:
        """Make it.

        Args:
            engine: starts the processes.
            connect: opens a link to one.
            code: takes what replicas are made of.
            request: tells the controller what must be saved before it counts.
            post: tells it everything else.
            home: the instance's folder, in whose logs the last words of a builder are; None: none.
        """
        self._engine = engine
        self._connect = connect
        self._code = code
        self._request = request
        self._post = post
        self._log = BuilderLog(home) if home is not None else None
        self._born: dict[str, _Birth] = {}
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._plan_room = asyncio.Semaphore(PLANNED_AT_A_TIME)

    def apply(self, actions: Iterable[Action]) -> None:
        """Begin the imports among the actions, end those that nobody waits for any more."""
        for action in actions:
            if isinstance(action, BuildApplication):
                self._begin(action)
            elif isinstance(action, CancelBuilds):
                self._cancel(action.before)

    def _begin(self, action: BuildApplication) -> None:
        task = asyncio.get_running_loop().create_task(self._build_for(action))
        self._tasks[task] = action.release
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def _cancel(self, before: int) -> None:
        for task, release in self._tasks.items():
            if release < before:
                task.cancel()

    def on_engine(self, event: base.EngineEvent) -> bool:
        """Take what the engine said of a builder; False: it was said of something else."""
        process_id = getattr(event, "process_id", "")
        if is_replica(process_id) or not process_id.startswith(PREFIX):
            return False
        birth = self._born.get(process_id)
        if isinstance(event, base.ProcessStarted):
            if birth is None:
                # Of a controller that is gone: it would wait for ever.
                self._end(process_id)
            elif not birth.up.done():
                birth.pid = event.pid
                birth.up.set_result(event.address)
        elif isinstance(event, base.ProcessExited) and birth is not None:
            birth.reason = event.reason
            birth.ended.set()
            if not birth.up.done():
                lost = _Refused if event.refused else ConnectionLostError
                birth.up.set_exception(lost(event.reason))
        return True

    async def close(self) -> None:
        """End everything; builders end with their task, or are ended by the next controller."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _build_for(self, action: BuildApplication) -> None:
        name, release = action.application.name, action.release
        keys: list[str] = []
        try:
            spec = await self.build(action.application)
            request = await stored(self._code, spec, keys, self._engine.default_resources)
            await self._request(ev.ApplicationBuilt(release=release, application=request))
        except RemoraError as error:
            self._post(ev.ApplicationNotBuilt(release=release, name=name, error=str(error)))
        except Exception as error:  # noqa: BLE001
            # The border of a task that nobody waits for: unseen, the release would be under way
            # for ever.
            _log.exception("A bug ended the import of %r", name)
            text = f"{name!r} was not imported, by a bug: {type(error).__name__}: {error}"
            self._post(ev.ApplicationNotBuilt(release=release, name=name, error=text))
        finally:
            self._code.unpin(keys)

    async def build(self, application: DeclaredApplication) -> ApplicationSpec:
        """Import an application and describe it.

        Raises:
            BuildError: it leads to none; has the user's traceback.
            EngineError: no process can be started for it.
        """
        async with self._room:
            return await self._imported(application)

    async def build_for_plan(self, application: DeclaredApplication) -> ApplicationSpec:
        """Import an application only to say what it is.

        Raises:
            BuildError: as `build`, or it takes longer than `PLAN_LIMIT_S`.
            EngineError: no process can be started for it.
        """
        async with self._plan_room:
            try:
                async with asyncio.timeout(PLAN_LIMIT_S):
                    return await self._imported(application)
            except TimeoutError:
                raise BuildError(
                    f"{application.name!r} was not imported within {PLAN_LIMIT_S:g} s, the limit "
                    "of a plan; deploy it to have it take longer."
                ) from None

    async def _imported(self, application: DeclaredApplication) -> ApplicationSpec:
        while True:
            try:
                return await self._imported_by_one(application)
            except _Refused as error:
                # The engine sends none there any more, and says so when there is no other node.
                _log.warning("The import of %r is tried elsewhere: %s", application.name, error)

    async def _imported_by_one(self, application: DeclaredApplication) -> ApplicationSpec:
        # Also an earlier controller's are never met again.
        process_id = f"{PREFIX}{uuid.uuid4().hex[:16]}"
        birth = self._born[process_id] = _Birth(self._log.mark() if self._log is not None else 0)
        try:
            await self._engine.start_process(
                base.ProcessSpec(
                    process_id=process_id,
                    entrypoint=BUILDER_ENTRYPOINT,
                    title=f"remora: builder {application.name}",
                    env=application.env,
                    runtime_env=application.runtime_env,
                )
            )
            return await self._ask(await birth.up, application)
        except _Refused:
            raise
        except ConnectionLostError as error:
            raise BuildError(await self._how_it_died(application.name, birth, error)) from None
        finally:
            del self._born[process_id]
            self._end(process_id)

    async def _how_it_died(self, name: str, birth: _Birth, lost: ConnectionLostError) -> str:
        """Say what ended a builder, and what it said last."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_TOLD_S):
                await birth.ended.wait()
        reason = birth.reason or str(lost).rstrip(".")
        told = f"The process that imported {name!r} ended before it was done: {reason}."
        if "SIGKILL" in reason:
            told += " The kernel does that where memory runs out; see `dmesg`."
        lines: list[str] = []
        if self._log is not None:
            lines = await asyncio.to_thread(self._log.since, birth.mark, birth.pid)
        if not lines:
            return f"{told} It logged nothing."
        return "\n".join([told, "  It logged last:", *(f"    {line}" for line in lines)])

    async def _ask(self, address: str, application: DeclaredApplication) -> ApplicationSpec:
        link = await self._connect(address)
        try:
            result = await link.call("build", BuildRequest(application), BuildResult)
        finally:
            link.close()
        if result is None or result.application is None:
            raise BuildError(result.error if result is not None else "the builder said nothing")
        return result.application

    def _end(self, process_id: str) -> None:
        async def end() -> None:
            try:
                await self._engine.stop_process(process_id, _EXIT_S)
            except RemoraError as error:
                _log.debug("%s was not ended: %s", process_id, error)

        task = asyncio.get_running_loop().create_task(end())
        # No release: it is never cancelled, only waited for.
        self._tasks[task] = 1 << 62
        task.add_done_callback(lambda done: self._tasks.pop(done, None))


async def stored(
    code: CodeStore, app: ApplicationSpec, keys: list[str], defaults: Mapping[str, float]
) -> ApplicationRequest:
    """Put the code of an application into the store and pin it.

    Args:
        code: the store.
        app: the application.
        keys: takes the keys of its code.
        defaults: what a replica takes whose deployment does not say.

    Raises:
        EngineError: it could not be written.
    """
    own = []
    for deployment in app.deployments:
        try:
            own.append(await code.put(deployment.code))
            keys.append(own[-1])
        except EngineError as error:
            raise EngineError(
                f"Refused: the code of {app.name}/{deployment.name} ({len(deployment.code)} "
                f"bytes) could not be saved; nothing changed. {error}"
            ) from error
    return as_request(app, own, defaults)


def as_request(
    app: ApplicationSpec, code_keys: list[str], defaults: Mapping[str, float]
) -> ApplicationRequest:
    """Describe an application whose code lies in the store under these keys. Pure."""
    return ApplicationRequest(
        name=app.name,
        route_prefix=app.route_prefix,
        ingress=app.ingress,
        deployments=tuple(
            DeploymentRequest(
                name=deployment.name,
                code_key=key,
                code_version=deployment.code_version,
                config=with_resources(deployment.config, defaults),
                calls=deployment.calls,
            )
            for deployment, key in zip(app.deployments, code_keys, strict=True)
        ),
        surroundings=app.surroundings,
        external_scaler=app.external_scaler,
        scaling_policy=app.scaling_policy,
    )
