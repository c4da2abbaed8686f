"""Does what `reconcile.step` decided; what comes of it is posted as events.

Theory of operation: every action is a task of its own, so one slow replica delays nobody and
the tick never waits. What is under way with one replica is kept in its lanes.

Rules: decides nothing. Every call ends in exactly one event, unless a later call took its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from remora.control.checkpoint import CodeStore
from remora.control.lanes import Lanes
from remora.control.replica_control import Connect
from remora.control.stacks import SavedStacks
from remora.core import actions as act
from remora.core import events as ev
from remora.core.starting import is_pinned
from remora.engine.base import Engine, ProcessSpec, Shared
from remora.errors import ConnectionLostError, RemoraError
from remora.types import DeploymentID, ReplicaID, Seconds
from remora.wire.control import HealthCheck, ReplicaReady, ReplicaReconfigure, ReplicaSpec
from remora.wire.metrics import MetricsReport

_log = logging.getLogger("remora.controller")

REPLICA_ENTRYPOINT = "remora.replica.main:main"
#: A `reconfigure` may load a model; one that takes longer than this is taken for stuck.
RECONFIGURE_LIMIT_S: Seconds = 600.0
#: Between the end of the destructor and the end of its process.
_EXIT_S: Seconds = 0.5
#: A replica answers what it is at once, unless its loop is blocked.
DESCRIBE_LIMIT_S: Seconds = 4.0


class Applier:
    """The hands of the controller."""

    def __init__(
        self,
        engine: Engine,
        connect: Connect,
        code: CodeStore,
        post: Callable[[ev.AnyEvent], None],
        stacks: SavedStacks,
        logging: Mapping[str, Any] | None = None,
        tracing: Mapping[str, Any] | None = None,
        keep: Callable[[MetricsReport], None] = lambda _last: None,
    ) -> None:
        """Make an applier.

        Args:
            engine: starts and stops processes.
            connect: opens a link to a replica.
            code: what replicas are made of, by its key.
            post: takes the events.
            stacks: what stuck replicas saved.
            logging: how replicas log whose deployment does not say, as a dict.
            tracing: where they trace, as a dict.
            keep: takes what a replica that ends has counted.
        """
        self._engine = engine
        self._keep = keep
        self._connect = connect
        self._code = code
        self._post = post
        self._stacks = stacks
        self._logging = logging
        self._tracing = tracing
        self._lanes = Lanes(connect)

    def apply(self, actions: Iterable[act.Action]) -> None:
        """Begin all actions but those of builders, in order. Never blocks, never raises."""
        lanes = self._lanes
        for action in actions:
            match action:
                case act.StartProcess():
                    lanes.command(action.replica_id, self._start(action))
                case act.KillProcess():
                    lanes.cancel_call(action.replica_id)
                    lanes.command(action.replica_id, self._kill(action.replica_id))
                case act.EndInstance():
                    lanes.spawn(self._guard("end the instance", self._engine.shutdown()))
                case act.InitializeReplica():
                    lanes.call(action.replica_id, self._initialize(action))
                case act.CheckHealth():
                    lanes.call(action.replica_id, self._check_health(action))
                case act.Reconfigure():
                    lanes.call(action.replica_id, self._reconfigure(action))
                case act.DescribeReplica():
                    lanes.call(action.replica_id, self._describe(action))
                case act.DrainReplica():
                    lanes.call(action.replica_id, self._drain(action))
                case act.StopReplica():
                    lanes.call(action.replica_id, self._stop(action))

    def forget(self, replica_id: ReplicaID) -> None:
        """Its process is gone: end what is under way with it."""
        self._stacks.tidy(replica_id)
        self._lanes.forget(replica_id)

    async def close(self) -> None:
        """End everything; processes and replicas stay as they are."""
        for replica_id in self._lanes.replicas():
            self.forget(replica_id)
        await self._lanes.close()

    async def metrics(self, replica_id: ReplicaID, address: str) -> MetricsReport:
        """Ask a replica what it counts, beside whatever else is under way with it.

        Raises:
            ConnectionLostError: it is gone.
            RemoteError: it could not tell.
        """
        if not self._lanes.knows(replica_id):
            raise ConnectionLostError(f"Replica {replica_id} is gone")
        link = await self._lanes.link(replica_id, address)
        return await link.call("metrics", None, MetricsReport) or MetricsReport()

    async def _guard(self, what: str, command: Coroutine[Any, Any, None]) -> None:
        try:
            await command
        except RemoraError as error:
            # The border to the engine: its events, or the next step, show what came of it.
            _log.warning("The engine could not %s: %s", what, error)

    # ------------------------------------------------------------------------------ commands

    async def _start(self, action: act.StartProcess) -> None:
        deployment = DeploymentID(action.deployment, action.app_name)
        spec = ProcessSpec(
            process_id=action.replica_id,
            entrypoint=REPLICA_ENTRYPOINT,
            title=f"remora: replica {action.replica_id}",
            args={
                "application": action.app_name,
                "deployment": action.deployment,
                "logging": self._logging,
                "tracing": self._tracing,
                "logging_of_deployment": msgspec.to_builtins(action.config.logging_config),
            },
            env=action.env,
            node_id=action.holds[0].node_id,
            preload=action.surroundings.preload,
            holds=action.holds,
            strategy=action.config.placement_group_strategy,
            pinned=is_pinned(action.config),
            runtime_env=action.config.runtime_env,
            shared=_shared(action),
        )
        try:
            await self._engine.start_process(spec)
        except RemoraError as error:
            _log.warning("A replica of %s could not be started: %s", deployment, error)
            reason = f"could not start: {error}"
            self._post(ev.ProcessExited(replica_id=action.replica_id, reason=reason))

    async def _kill(self, replica_id: ReplicaID) -> None:
        await self._guard(f"kill {replica_id}", self._engine.kill_process(replica_id))
        # It may never have existed, so no exit will come that clears this up.
        self._lanes.forget_unlinked(replica_id)

    # --------------------------------------------------------------------------------- calls

    async def _initialize(self, action: act.InitializeReplica) -> None:
        replica_id = action.replica_id
        try:
            code = await self._code.get(action.code_key)
            link = await self._lanes.link(replica_id, action.address)
            spec = msgspec.structs.replace(action.spec, code=code)
            ready = await link.call("initialize", spec, ReplicaReady)
        except ConnectionLostError as error:
            self._lost(replica_id, "initialize", error)
        except Exception as error:  # noqa: BLE001 - border: the user's constructor
            self._post(ev.ReplicaStartFailed(replica_id=replica_id, traceback=told(error)))
        else:
            docs_path = ready.docs_path if ready is not None else ""
            self._post(ev.ReplicaReady(replica_id=replica_id, docs_path=docs_path))

    async def _check_health(self, action: act.CheckHealth) -> None:
        replica_id = action.replica_id
        limit = asyncio.timeout(action.timeout_s)
        try:
            async with limit:
                await self._ask_health(action)
        except ConnectionLostError as error:
            self._lost(replica_id, "check_health", error)
        except Exception as error:  # noqa: BLE001 - border: the user's health check
            # The user's check may raise a TimeoutError of its own: that is an answer.
            late = isinstance(error, TimeoutError) and limit.expired()
            problem = self._why_late(action) if late else told(error)
            self._post(ev.HealthChecked(replica_id=replica_id, error=problem, timed_out=late))
        else:
            self._post(ev.HealthChecked(replica_id=replica_id))

    async def _ask_health(self, action: act.CheckHealth) -> None:
        # On a connection of its own: what a new router finds there is what is to be known.
        link = await self._connect(action.address)
        try:
            await link.call("check_health", HealthCheck(action.timeout_s))
        finally:
            link.close()

    def _why_late(self, action: act.CheckHealth) -> str:
        late = f"no answer within {action.timeout_s:g} s"
        stacks = self._stacks.of(action.replica_id)
        return f"{late}; its event loop stands still, see where in {stacks}" if stacks else late

    async def _reconfigure(self, action: act.Reconfigure) -> None:
        replica_id = action.replica_id
        problem = ""
        try:
            link = await self._lanes.link(replica_id, action.address)
            body = ReplicaReconfigure(
                config=action.config,
                ranks=action.ranks,
                revision=action.revision,
                world_size=action.world_size,
            )
            await link.call("reconfigure", body, timeout_s=RECONFIGURE_LIMIT_S)
        except ConnectionLostError as error:
            self._lost(replica_id, "reconfigure", error)
            return
        except Exception as error:  # noqa: BLE001 - border: the user's `reconfigure`
            problem = told(error)
        self._post(
            ev.Reconfigured(replica_id=replica_id, config_key=action.config_key, error=problem)
        )

    async def _describe(self, action: act.DescribeReplica) -> None:
        replica_id = action.replica_id
        try:
            link = await self._lanes.link(replica_id, action.address)
            spec = await link.call("describe", None, ReplicaSpec, DESCRIBE_LIMIT_S)
            assert spec is not None
            code_key = await self._code.put(spec.code)
        except Exception as error:  # noqa: BLE001 - border: whatever answers there
            _log.warning("Replica %s did not say what it is: %s", replica_id, told(error))
            self._post(ev.ReplicaDescribed(replica_id=replica_id, error=told(error)))
            return
        known = msgspec.structs.replace(spec, code=b"")
        self._post(ev.ReplicaDescribed(replica_id=replica_id, code_key=code_key, spec=known))

    async def _drain(self, action: act.DrainReplica) -> None:
        replica_id = action.replica_id
        try:
            link = await self._lanes.link(replica_id, action.address)
            await link.call("drain")
        except ConnectionLostError as error:
            self._lost(replica_id, "drain", error)
        except Exception as error:  # noqa: BLE001 - border: a replica that cannot drain is stopped
            _log.warning("Replica %s did not drain: %s", replica_id, error)
            self._post(ev.ReplicaIdle(replica_id=replica_id))
        else:
            self._post(ev.ReplicaIdle(replica_id=replica_id))

    async def _stop(self, action: act.StopReplica) -> None:
        """Run the destructor, then end the process, also when nobody answers there."""
        replica_id = action.replica_id
        loop = asyncio.get_running_loop()
        deadline = loop.time() + action.timeout_s
        if action.address and action.timeout_s > 0:
            try:
                async with asyncio.timeout(action.timeout_s):
                    link = await self._lanes.link(replica_id, action.address)
                    last = await link.call("stop", None, MetricsReport)
                    if last is not None:
                        self._keep(last)
            except (ConnectionLostError, TimeoutError):
                pass
            except Exception as error:  # noqa: BLE001 - border: the user's destructor
                _log.warning("The destructor of replica %s failed: %s", replica_id, told(error))
        left_s = max(deadline - loop.time(), _EXIT_S if action.timeout_s > 0 else 0.0)
        await self._guard(f"stop {replica_id}", self._engine.stop_process(replica_id, left_s))

    def _lost(self, replica_id: ReplicaID, call: str, error: ConnectionLostError) -> None:
        self._post(ev.CallLost(replica_id=replica_id, call=call, reason=str(error)))


def _shared(action: act.StartProcess) -> Shared | None:
    names = action.config.preload
    if not names:
        return None
    surroundings = action.surroundings
    return Shared(names, action.code_version, surroundings.sys_path, surroundings.cwd)


def told(error: BaseException) -> str:
    """Say what a replica raised, with its traceback where it sent one."""
    text = str(error)
    if not isinstance(error, RemoraError):
        text = f"{type(error).__name__}: {text}"
    return "\n".join([text, *getattr(error, "__notes__", ())])
