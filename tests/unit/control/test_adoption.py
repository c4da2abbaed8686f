"""The controller is killed at every single thing that it does, and what it did is finished.

Each run kills it before one call to the engine or to its store; the runs go through all of them.
Every successor is killed as well, later and later, until one lives. The end is always what was
declared, and no replica was restarted that could have stayed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.control.replica_control import ReplicaControl
from remora.core.state import validate
from remora.engine.base import ProcessSpec
from remora.testing import FakeEngine
from remora.testing.virtual_time import run
from remora.types import Seconds
from remora.wire.control import ApplicationSpec, ReplicaSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

T = TypeVar("T")

#: Lives of controllers until one is spared.
LIVES = 3


class MortalEngine(FakeEngine):
    """Its controller dies before a given call, and does nothing any more after that."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_left: int | None = None
        self.killed = asyncio.Event()

    def count_call(self) -> None:
        """Die here, if it is time."""
        if self.calls_left == 0:
            self.killed.set()
            raise asyncio.CancelledError
        if self.calls_left is not None:
            self.calls_left -= 1

    async def put(self, key: str, value: bytes) -> None:
        self.count_call()
        await super().put(key, value)

    async def delete(self, key: str) -> None:
        self.count_call()
        await super().delete(key)

    async def start_process(self, spec: ProcessSpec) -> None:
        self.count_call()
        await super().start_process(spec)

    async def stop_process(self, process_id: str, timeout_s: Seconds) -> None:
        # Replicas end themselves by this call as well, whoever has died.
        if not self.killed.is_set():
            self.count_call()
        await super().stop_process(process_id, timeout_s)

    async def kill_process(self, process_id: str) -> None:
        self.count_call()
        await super().kill_process(process_id)


class MortalLink:
    """A connection from a controller that may die before it says something."""

    def __init__(self, engine: MortalEngine, link: ReplicaControl) -> None:
        self._engine = engine
        self._link = link

    async def call(
        self,
        method: str,
        body: msgspec.Struct | None = None,
        reply: type[T] | None = None,
        timeout_s: float | None = None,
    ) -> T | None:
        self._engine.count_call()
        return await self._link.call(method, body, reply, timeout_s)

    @property
    def is_open(self) -> bool:
        return self._link.is_open

    def close(self) -> None:
        self._link.close()


class MortalRig(Rig):
    """A rig whose controller is started again when it was killed."""

    def __init__(self, spacing: int) -> None:
        self.mortal = MortalEngine()
        super().__init__(self.mortal)
        self.num_kills = 0
        self._spacing = spacing
        connect = self.replicas.connect

        async def mortal_connect(address: str) -> Any:
            return MortalLink(self.mortal, await connect(address))

        self.replicas.connect = mortal_connect  # type: ignore[method-assign]

    async def start(self) -> None:
        killed = asyncio.create_task(self.mortal.killed.wait())
        starting = asyncio.create_task(super().start())
        await asyncio.wait([killed, starting], return_when=asyncio.FIRST_COMPLETED)
        for task in (killed, starting):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def keep_alive(self) -> None:
        """Replace the controller whenever it was killed."""
        while True:
            await self.mortal.killed.wait()
            self.num_kills += 1
            await self.stop()
            # Its successor dies later, so that it gets somewhere.
            lives_on = self.num_kills >= LIVES
            self.mortal.calls_left = None if lives_on else self._spacing * self.num_kills
            self.mortal.killed.clear()
            await self.start()

    async def insist(self, spec: ApplicationSpec) -> None:
        """Deploy; whoever lost its controller before the answer asks again."""
        while True:
            asking = asyncio.create_task(self.deploy(spec))
            killed = asyncio.create_task(self.mortal.killed.wait())
            await asyncio.wait([asking, killed], return_when=asyncio.FIRST_COMPLETED)
            killed.cancel()
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                return
            asking.cancel()
            await asyncio.wait([asking])
            while self.mortal.killed.is_set() or not self.controller.ready.is_set():
                await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Change:
    """From one declaration to another.

    Attributes:
        keeps: replicas of before that must still be there.
        starts: processes that are to be started; more only for those that were not up yet when
            their controller was killed.
    """

    before: ApplicationSpec
    after: ApplicationSpec
    keeps: int
    starts: int
    version: str = "1"


def model(version: str = "1", **options: Any) -> ApplicationSpec:
    return app("default", deployment(version=version, **options))


CHANGES = {
    "up": Change(model(num_replicas=2), model(num_replicas=5), 2, 3),
    "down": Change(model(num_replicas=5), model(num_replicas=2), 2, 0),
    "reconfigure": Change(
        model(num_replicas=3, user_config={"k": 1}),
        model(num_replicas=3, user_config={"k": 2}),
        3,
        0,
    ),
    "roll": Change(model(num_replicas=3), model("2", num_replicas=3), 0, 3, "2"),
    "roll and grow": Change(model(num_replicas=2), model("2", num_replicas=4), 0, 4, "2"),
    "bad": Change(
        model(num_replicas=2), model("bad", num_replicas=2, max_constructor_retry_count=2), 2, 2
    ),
}


async def killed_at(change: Change, number: int, spacing: int) -> int:
    """Kill the controller before its call `number`, and look at the end; returns the kills."""
    r = MortalRig(spacing)
    r.replicas.fail_construct = _fails
    await r.start()
    await r.deploy(change.before)
    await r.until_settled()
    before = {replica.pid for replica in r.replicas.serving}
    started = r.engine.num_started
    fewest = [len(before)]
    least = min(count(change.before), count(change.after))
    r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))
    ready: set[int] = set()
    r.mortal.calls_left = number
    keeping = asyncio.create_task(r.keep_alive())
    await r.insist(change.after)
    async with asyncio.timeout(600.0):
        while not _is_there(r, change):
            ready |= {
                replica.pid
                for replica in r.replicas.serving
                if replica.spec and replica.spec.code_version == change.version
            }
            await asyncio.sleep(0.005)
    keeping.cancel()
    await asyncio.wait([keeping])
    validate(r.controller.state)
    after = {replica.pid for replica in r.replicas.serving}
    assert min(fewest) >= least, "routers never know fewer than are declared before and after"
    assert len(before & after) == change.keeps
    if change.keeps == 0:
        # What had come up of the new version was kept.
        assert ready <= after
    # A start that was under way when its controller died is made again; one at a time each kill.
    assert r.engine.num_started - started <= change.starts + 2 * r.num_kills + _failures(change)
    assert len(r.engine.processes) == len(after)
    await r.stop()
    return r.num_kills


def _fails(spec: ReplicaSpec) -> str:
    return "ValueError: bad" if spec.code_version == "bad" else ""


def _failures(change: Change) -> int:
    return 2 * LIVES if change.after.deployments[0].code_version == "bad" else 0


def count(spec: ApplicationSpec) -> int:
    return spec.deployments[0].config.num_replicas


def _is_there(r: MortalRig, change: Change) -> bool:
    state = r.controller.state
    app = state.applications.get("default")
    if r.mortal.killed.is_set() or app is None or state.hold_snapshot_until_s is not None:
        return False
    it = app.deployments["Model"]
    running = [each.spec for each in r.replicas.serving if each.spec is not None]
    wanted = change.after.deployments[0].config
    is_bad = change.after.deployments[0].code_version == "bad"
    return (
        it.target.config == wanted
        and len(running) == len(r.engine.processes) == count(change.after)
        and all(spec.code_version == change.version for spec in running)
        and (is_bad or all(spec.config.user_config == wanted.user_config for spec in running))
        and all(replica.state == "RUNNING" for replica in it.replicas.values())
        and (it.completed or (is_bad and it.failures >= 2))
    )


@pytest.mark.parametrize("spacing", [1, 4, 9])
@pytest.mark.parametrize("kind", CHANGES)
def test_whenever_the_controller_is_killed_the_end_is_what_was_declared(
    kind: str, spacing: int
) -> None:
    total = 0
    for number in range(400):
        kills = run(killed_at(CHANGES[kind], number, spacing))
        total += kills
        if kills == 0:
            break
    else:
        raise AssertionError("it never came to its end unharmed")
    print(f"{kind}: {number} runs with {total} kills")
    assert number >= 5
    assert total >= number
