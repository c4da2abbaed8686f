"""Asks policies of users, each in a process of its own, and bounds what they can do.

A policy is asked every second, and its last answer holds in between. One that raises or returns
nonsense is asked again; one that does not answer in time has its process ended and gets another
one, later each time. Meanwhile the number of replicas stays as it is, and status says why.

Rules: never waits on the controller's way. Opens no code: what comes back are numbers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remora.control.replica_control import Connect, ReplicaControl
from remora.control.said import Said
from remora.core.autoscale.given import Asked
from remora.core.autoscale.policies import pause_s, policies_of
from remora.core.state import Application
from remora.engine.base import (
    Engine,
    EngineEvent,
    ProcessExited,
    ProcessPreparing,
    ProcessSpec,
    ProcessStarted,
)
from remora.errors import ConnectionLostError, EngineError, PolicyError, RemoraError
from remora.observe.metrics import counter
from remora.options.autoscaling import ScalingPolicySetup
from remora.options.resources import RuntimeEnv
from remora.types import Seconds, is_replica
from remora.wire.control import Surroundings
from remora.wire.metrics import Family
from remora.wire.scaling import PolicyAnswer, PolicyQuestion, PolicySpec

if TYPE_CHECKING:
    from remora.control.scaled import Scaled

_log = logging.getLogger("remora.controller")

ENTRYPOINT = "remora.control.policy_process:main"
#: In front of the ids of policies' processes; an application may be named so, too.
_PREFIX = "policy:"
ASK_EVERY_S: Seconds = 1.0
#: A policy that reads a metric somewhere needs milliseconds; who waits longer does it in a task.
ANSWER_LIMIT_S: Seconds = 5.0
#: Imports of large libraries included.
LOAD_LIMIT_S: Seconds = 60.0


@dataclass
class _Owner:
    """A policy, whose it is, and what it decides about."""

    name: str
    app_name: str
    setup: ScalingPolicySetup
    scope: str
    surroundings: Surroundings
    #: Environment variables, packages and folders of its own.
    env: dict[str, str]
    runtime_env: RuntimeEnv
    scaled: list[Scaled]
    unix_offset_s: float
    task: asyncio.Task[None] | None = None
    process_id: str = ""
    #: Set with the address once the process is up, or with None when it has ended.
    started: asyncio.Future[str] | None = None
    failures: int = 0
    #: All of them, however many questions were answered in between.
    num_errors: int = 0
    said: Said = field(default_factory=Said)
    #: Of the start of its process.
    limit: asyncio.Timeout | None = None


class _NotUpError(PolicyError):
    """The process of a policy did not come up: that is no error of the policy's."""


class Policies:
    """Every policy of users in an instance."""

    def __init__(self, engine: Engine, connect: Connect) -> None:
        """Make it; nothing runs before an application with a policy is there.

        Args:
            engine: starts processes.
            connect: opens a link to one.
        """
        self._engine = engine
        self._connect = connect
        #: By application, and deployment where it is the policy of one.
        self._owners: dict[tuple[str, str], _Owner] = {}
        self._salt = os.urandom(4).hex()
        self._num_started = 0
        self._ending: set[asyncio.Task[None]] = set()
        #: Called for each deployment that a policy has said something about.
        self.on_answer: Callable[[Scaled], None] = lambda _scaled: None

    # ------------------------------------------------------------------------ what there is

    def follow(self, app: Application, scaled: list[Scaled], unix_offset_s: float) -> None:
        """Take over the deployments of an application that are scaled, and their policies."""
        by_name = {each.where.name: each for each in scaled}
        own = {name: each.policy for name, each in by_name.items()}
        wanted = policies_of(app.scaling_policy, own)
        for key in [key for key in self._owners if key[0] == app.name and key[1] not in wanted]:
            self._end(self._owners.pop(key))
        for whose, (setup, names) in wanted.items():
            those = [by_name.pop(name) for name in names]
            self._follow_one(app, (app.name, whose), setup, those, unix_offset_s)
        for each in by_name.values():
            each.asked = None

    def families(self) -> list[Family]:
        """Count how often each policy has failed: raised, said nonsense, or nothing in time."""
        rows: dict[tuple[str, ...], float] = {
            (owner.app_name, each.where.name): owner.num_errors
            for owner in self._owners.values()
            for each in owner.scaled
        }
        return [counter("serve_autoscaling_policy_errors", ("application", "deployment"), rows)]

    def _follow_one(
        self,
        app: Application,
        key: tuple[str, str],
        setup: ScalingPolicySetup,
        scaled: list[Scaled],
        unix_offset_s: float,
    ) -> None:
        owner = self._owners.get(key)
        env, runtime_env = _environment(app, key[1])
        told = (setup, env, runtime_env)
        if owner is not None and told == (owner.setup, owner.env, owner.runtime_env):
            owner.scaled = scaled
            owner.unix_offset_s = unix_offset_s
            for each in scaled:
                each.asked = each.asked or Asked(None, policy=setup.path)
            return
        if owner is not None:
            self._end(owner)
        whose = f"deployment {key[1]!r}" if key[1] else f"application {app.name!r}"
        surroundings = next(
            (each.target.surroundings for each in app.deployments.values()), Surroundings()
        )
        owner = self._owners[key] = _Owner(
            name=f"The autoscaling policy {setup.path} of {whose}",
            app_name=app.name,
            setup=setup,
            scope="deployment" if key[1] else "application",
            surroundings=surroundings,
            env=env,
            runtime_env=runtime_env,
            scaled=scaled,
            unix_offset_s=unix_offset_s,
        )
        for each in scaled:
            each.asked = Asked(None, policy=setup.path)
        owner.task = asyncio.get_running_loop().create_task(self._run(owner), name=owner.name)

    def forget(self, app_name: str) -> None:
        """An application is gone."""
        for key in [key for key in self._owners if key[0] == app_name]:
            self._end(self._owners.pop(key))

    def _end(self, owner: _Owner) -> None:
        if owner.task is not None:
            owner.task.cancel()
            self._ending.add(owner.task)
            owner.task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Ask nobody any more; processes are left to the engine, or to the next controller."""
        for owner in self._owners.values():
            self._end(owner)
        self._owners.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def note(self, event: EngineEvent) -> None:
        """Hear what became of a process; those of an earlier controller are ended."""
        if not isinstance(event, (ProcessStarted, ProcessPreparing, ProcessExited)):
            return
        process_id = event.process_id
        if is_replica(process_id) or not process_id.startswith(_PREFIX):
            return
        owner = next(
            (each for each in self._owners.values() if each.process_id == process_id), None
        )
        if owner is None or owner.started is None:
            if isinstance(event, ProcessStarted):
                self._kill(process_id)
        elif isinstance(event, ProcessPreparing):
            if owner.limit is not None and not owner.started.done():
                # Packages take as long as they take, and the engine says if they cannot be had.
                owner.limit.reschedule(None)
            self._tell(owner, f"{owner.name} is not asked yet: {event.what}")
        elif isinstance(event, ProcessStarted):
            if not owner.started.done():
                owner.started.set_result(event.address)
        else:
            if not owner.started.done():
                owner.started.set_exception(_NotUpError(f"its process ended: {event.reason}"))
            owner.process_id = ""

    def _kill(self, process_id: str) -> None:
        async def kill() -> None:
            try:
                await self._engine.kill_process(process_id)
            except RemoraError as error:
                _log.debug("The engine could not end %s: %s", process_id, error)

        task = asyncio.get_running_loop().create_task(kill())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    # ------------------------------------------------------------------------- one of them

    async def _run(self, owner: _Owner) -> None:
        while True:
            try:
                await self._run_process(owner)
            except _NotUpError as error:
                self._note_failure(owner, str(error))
            except Exception as error:  # noqa: BLE001
                # The border of a task that nobody waits for: unseen, nothing would be asked again.
                text = str(error)
                if not isinstance(error, RemoraError):
                    text = f"{type(error).__name__}: {text}"
                owner.num_errors += 1
                self._note_failure(owner, text)
            finally:
                if owner.process_id:
                    self._kill(owner.process_id)
                    owner.process_id = ""
            owner.failures += 1
            await asyncio.sleep(pause_s(owner.failures))

    async def _run_process(self, owner: _Owner) -> None:
        """Start a process and ask it again and again, until it fails for good."""
        link = await self._start(owner)
        try:
            while True:
                await self._ask(owner, link)
                await asyncio.sleep(ASK_EVERY_S)
        finally:
            link.close()

    async def _start(self, owner: _Owner) -> ReplicaControl:
        self._num_started += 1
        whose = owner.name.rpartition(" of ")[2].replace("'", "")
        place = f"{owner.app_name}/{whose}".replace("#", "_")
        owner.process_id = f"{_PREFIX}{place}@{self._salt}-{self._num_started}"
        owner.started = asyncio.get_running_loop().create_future()
        spec = ProcessSpec(
            process_id=owner.process_id,
            entrypoint=ENTRYPOINT,
            title=f"remora: policy of {place}",
            preload=("cloudpickle",),
            env=owner.env,
            runtime_env=owner.runtime_env,
        )
        link = await self._connected(owner, spec)
        body = PolicySpec(
            setup=owner.setup,
            surroundings=owner.surroundings,
            scope=owner.scope,
            name=owner.name,
        )
        try:
            await link.call("load", body, timeout_s=LOAD_LIMIT_S)
        except TimeoutError:
            link.close()
            raise PolicyError(f"{owner.name} was not loaded within {LOAD_LIMIT_S:g} s.") from None
        except BaseException:
            link.close()
            raise
        return link

    async def _connected(self, owner: _Owner, spec: ProcessSpec) -> ReplicaControl:
        assert owner.started is not None
        try:
            async with asyncio.timeout(LOAD_LIMIT_S) as owner.limit:
                await self._engine.start_process(spec)
                address = await owner.started
                owner.limit.reschedule(asyncio.get_running_loop().time() + LOAD_LIMIT_S)
                return await self._connect(address)
        except TimeoutError:
            raise _NotUpError(f"its process was not up within {LOAD_LIMIT_S:g} s") from None
        except EngineError as error:
            raise _NotUpError(f"its process could not be started: {error}") from None

    async def _ask(self, owner: _Owner, link: ReplicaControl) -> None:
        now = asyncio.get_running_loop().time()
        those = list(owner.scaled)
        question = PolicyQuestion(tuple(each.view(now, owner.unix_offset_s) for each in those))
        try:
            answer = await link.call("decide", question, PolicyAnswer, timeout_s=ANSWER_LIMIT_S)
        except TimeoutError:
            raise PolicyError(
                f"{owner.name} did not answer within {ANSWER_LIMIT_S:g} s; its process is ended "
                "and started again. Let it do what takes long in a thread or task of its own."
            ) from None
        except ConnectionLostError:
            raise PolicyError(f"{owner.name} has lost its process.") from None
        except RemoraError as error:
            # It lives, and may do better with the next question.
            owner.num_errors += 1
            self._note_failure(owner, str(error))
            return
        owner.failures = 0
        nums = answer.nums if answer is not None else {}
        for each in those:
            each.asked = Asked(nums.get(each.where), policy=owner.setup.path)
            self.on_answer(each)

    def _note_failure(self, owner: _Owner, message: str) -> None:
        if not message.startswith(owner.name):
            message = f"{owner.name} cannot be asked: {message}"
        text = f"{message}\nThe number of replicas stays as it is."
        if (line := owner.said.say(text, asyncio.get_running_loop().time())) is not None:
            _log.warning("%s", line)
        self._tell(owner, message)

    def _tell(self, owner: _Owner, message: str) -> None:
        """Let status say why there is no answer."""
        for each in owner.scaled:
            each.asked = Asked(None, error=message, policy=owner.setup.path)
            self.on_answer(each)


def _environment(app: Application, deployment: str) -> tuple[dict[str, str], RuntimeEnv]:
    """Say what the policy of a deployment finds, or of the whole application (empty). Pure."""
    if deployment:
        config = app.deployments[deployment].target.config
        return config.env_vars, config.runtime_env
    # Each deployment has this and may have more.
    declared = app.declared
    return (declared.env, declared.runtime_env) if declared is not None else ({}, RuntimeEnv())
