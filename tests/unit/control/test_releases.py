"""Releases through the controller, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.cli.history import line
from remora.control.client import ControlClient
from remora.control.releases import KEPT_BYTES, KEPT_RELEASES, KEPT_WITH_CODE, ReleaseStore
from remora.core import events as ev
from remora.core.releases import Record
from remora.errors import ConnectionLostError, EngineError, ReleaseError
from remora.home import Home
from remora.wire.codec import pack, unpack
from remora.wire.control import Accepted, BuildResult, ConfigRequest, Configs, DeclaredApplication
from remora.wire.releases import Release, Releases, RollbackRequest

pytestmark = pytest.mark.virtual_time


def describe(application: DeclaredApplication) -> BuildResult:
    version = application.given.decode()
    made = app(application.name, deployment(version=version, rollback="auto"), route_prefix=None)
    return BuildResult(application=made)


async def submit(r: Rig, version: str) -> None:
    declared = DeclaredApplication(name="a", route_prefix=None, given=version.encode())
    await r.call("submit", pack(ConfigRequest(applications=(declared,), source="test")))
    await r.until_settled("a")


async def ask(r: Rig, method: str, body: bytes = b"") -> bytes:
    made = r.admin.handlers[method](body)
    assert not hasattr(made, "__aiter__")
    return await made


async def releases(r: Rig) -> tuple[Release, ...]:
    return unpack(await ask(r, "releases"), Releases).releases


async def roll_back(r: Rig, number: int) -> int:
    return unpack(await ask(r, "rollback", pack(RollbackRequest(number))), Accepted).release


def version_of(r: Rig, name: str) -> str:
    return r.controller.state.applications[name].deployments["Model"].target.code_version


async def test_every_accepted_change_is_kept_and_survives_the_controller(r: Rig) -> None:
    r.replicas.describe = describe
    await submit(r, "1")
    await r.deploy(app("script", route_prefix=None))
    await r.until_running("script")
    await r.delete("script")
    await r.until(lambda now: now is None, "script")
    await r.delete("script")  # is gone: no release
    await r.stop()
    await r.start()
    found = await releases(r)
    assert [(each.number, each.kind) for each in found] == [
        (1, "config"),
        (2, "program"),
        (3, "delete"),
    ]
    assert found[0].in_effect
    await submit(r, "2")
    assert [each.number for each in await releases(r)] == [1, 2, 3, 4]


async def test_a_rollback_brings_a_config_back(r: Rig) -> None:
    r.replicas.describe = describe
    for version in ("1", "2", "3"):
        await submit(r, version)
    assert await roll_back(r, 0) == 4
    await r.until_settled("a")
    assert version_of(r, "a") == "2"
    assert await roll_back(r, 0) == 5
    await r.until_settled("a")
    assert version_of(r, "a") == "1"
    assert [each.source for each in await releases(r)][3:] == [
        "rollback to 2",
        "rollback to 1",
    ]
    with pytest.raises(ReleaseError, match="no config before release 1"):
        await roll_back(r, 0)


async def test_a_rollback_whose_answer_was_lost_goes_back_once(
    r: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller saved it and died before it answered; the client asks the next one."""

    r.replicas.describe = describe
    for version in ("1", "2", "3"):
        await submit(r, version)
    asked = 0

    async def lossy(
        _channel: object, method: str, body: msgspec.Struct, reply: type, **_: object
    ) -> object:
        nonlocal asked
        asked += 1
        answer = await ask(r, method, pack(body))
        if asked % 2:
            await r.stop()
            await r.start()
            raise ConnectionLostError("the controller is gone")
        return unpack(answer, reply)

    async def connected(_client: ControlClient) -> None: ...

    monkeypatch.setattr("remora.control.client.call_control", lossy)
    monkeypatch.setattr(ControlClient, "_connected", connected)
    client = ControlClient(Home(tmp_path))
    assert await client.roll_back(0) == 4
    await r.until_settled("a")
    assert version_of(r, "a") == "2"
    # Another rollback is another one.
    assert await client.roll_back(0) == 5
    await r.until_settled("a")
    assert (asked, version_of(r, "a")) == (4, "1")


async def test_config_and_history_tell_of_a_version_that_was_rolled_back(r: Rig) -> None:
    r.replicas.describe = describe
    r.replicas.fail_construct = lambda spec: "no" if spec.code_version == "9" else ""
    await submit(r, "1")
    declared = DeclaredApplication(name="a", route_prefix=None, given=b"9")
    await r.call("submit", pack(ConfigRequest(applications=(declared,), source="test")))
    status = await r.until(lambda now: now is not None and bool(now.failure), "a")
    assert status is not None
    assert "(release 2) failed and was rolled back" in status.failure
    assert unpack(await ask(r, "configs"), Configs).applications == {"a": b"1"}
    first, second = await releases(r)
    assert (first.rolled_back, second.rolled_back) == ((), ("a",))
    assert line(second).endswith("  rolled back  a (test)  <- declared now  a: no")


async def test_what_a_program_deployed_comes_back_with_its_code(r: Rig) -> None:
    first = deployment(version="1", code=b"first")
    await r.deploy(app("script", first, route_prefix=None))
    await r.until_settled("script")
    for number in range(2, KEPT_WITH_CODE + 3):
        new = deployment(version=str(number), code=b"%d" % number)
        await r.deploy(app("script", new, route_prefix=None))
        await r.until_settled("script")
    # Old code is looked for now and then, when the new version is trusted.
    await asyncio.sleep(20.0)
    with pytest.raises(ReleaseError, match="code of release 1"):
        await roll_back(r, 1)
    await roll_back(r, 5)
    await r.until_settled("script")
    assert version_of(r, "script") == "5"
    (replica,) = r.replicas.serving
    assert replica.spec is not None
    assert replica.spec.code == b"5"


async def test_a_release_that_cannot_be_kept_is_refused(r: Rig) -> None:
    r.replicas.describe = describe
    await submit(r, "1")
    r.engine.fail_puts = True
    with pytest.raises(EngineError, match="nothing changed"):
        await roll_back(r, 1)
    r.engine.fail_puts = False
    assert [each.number for each in await releases(r)] == [1]


async def test_only_the_latest_are_kept(r: Rig) -> None:
    store = r.controller.releases
    for number in range(1, KEPT_RELEASES + 6):
        event = ev.DeleteRequested(names=("x",))
        await store.put(Record(number=number, unix_s=0.0, event=event))
    numbers = [each.number for each in await store.read()]
    assert numbers == list(range(6, KEPT_RELEASES + 6))
    again = ReleaseStore(store._store)
    await again.load()
    assert await again.read() == await store.read()


async def test_all_together_are_bounded_in_bytes_and_a_way_back_stays(r: Rig) -> None:
    store = r.controller.releases

    async def put(number: int, size: int) -> list[int]:
        event = ev.DeleteRequested(names=("x" * size,))
        await store.put(Record(number=number, unix_s=0.0, event=event))
        return [each.number for each in await store.read()]

    for number in range(1, 8):
        await put(number, KEPT_BYTES // 4)
    assert await put(8, 1) == [5, 6, 7, 8]
    store = ReleaseStore(store._store)
    await store.load()
    assert await put(9, KEPT_BYTES // 4) == [6, 7, 8, 9]
    assert await put(10, KEPT_BYTES + 1) == [9, 10]


async def test_one_that_cannot_be_read_is_left_out(r: Rig) -> None:
    r.replicas.describe = describe
    await submit(r, "1")
    await submit(r, "2")
    r.engine.store["release/000000000001"] = b"junk"
    assert [each.number for each in await r.controller.releases.read()] == [2]
