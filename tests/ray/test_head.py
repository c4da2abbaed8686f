"""What the engine makes of a head of Ray that is away for a moment, and of nodes that hang."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import ray
from tests.e2e.waiting import until_true

from remora.engine.base import EngineEvent, ProcessExited, ProcessSpec, ProcessStarted
from remora.engine.ray import cluster as rays
from remora.engine.ray import engine as engine_module
from remora.engine.ray import fleet, groups, head, replicas
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.engine import RayEngine
from remora.engine.ray.nodes import NodeWatch
from remora.engine.ray.setup import InstanceSetup, NodeRecord, ProcessRecord
from remora.errors import EngineError
from remora.types import NodeID
from remora.wire.holds import Hold

ID = "app/d#1"
#: Two bundles make a placement group.
BUNDLES = (Hold(NodeID("n1"), {"CPU": 1.0}), Hold(NodeID("n1"), {"CPU": 1.0}))


class FakeActor:
    """An actor whose answers a test gives."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[bytes] = loop.create_future()
        self.over: asyncio.Future[tuple[str, bool]] = loop.create_future()
        self.begin = SimpleNamespace(remote=lambda: self.begun)
        self.run = SimpleNamespace(remote=lambda: None)
        self.ended = SimpleNamespace(remote=lambda: self.over)

    def come_up(self, process_id: str = ID) -> None:
        record = ProcessRecord(process_id, "unix:/nowhere", 1234, "n1")
        self.begun.set_result(msgspec.msgpack.encode(record))


class FakeCluster(Cluster):
    """A cluster in memory. Its head fails as often as `failures` says of a call, then works."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.values: dict[str, bytes] = {}
        self.handles: dict[str, FakeActor] = {}
        self.failures: Counter[str] = Counter()
        self.groups: set[str] = set()
        InstanceSetup(home="", node_id="n1", token="t", http={}).save(self)

    def may_fail(self, call: str) -> None:
        if self.failures[call] > 0:
            self.failures[call] -= 1
            raise EngineError(f"no {call}: the head is away")

    def get(self, key: str) -> bytes | None:
        self.may_fail("get")
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.may_fail("put")
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.may_fail("delete")
        self.values.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))

    def names(self) -> list[str]:
        return list(self.handles)

    def actor(self, name: str) -> Any:
        return self.handles.get(name)

    def kill(self, name: str) -> None:
        self.may_fail("kill")
        self.handles.pop(name, None)

    def create(self, request: Any, **_: Any) -> FakeActor:
        self.may_fail("create")
        return self.handles[request.process_id]

    def make_group(self, spec: ProcessSpec, _: str, __: object) -> None:
        self.groups.add(spec.process_id)

    def remove_group(self, _: str, process_id: str) -> None:
        self.may_fail("remove_group")
        self.groups.discard(process_id)

    def remove_groups(self, _: str, spare: list[str]) -> None:
        self.groups &= set(spare)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    was_there = ray.is_initialized()
    made = FakeCluster()
    monkeypatch.setattr(engine_module, "Cluster", lambda _: made)
    for name in ("remove_group", "remove_groups"):
        monkeypatch.setattr(groups, name, getattr(made, name))
    monkeypatch.setattr(replicas, "make_group", made.make_group)
    monkeypatch.setattr(fleet, "create", made.create)
    monkeypatch.setattr(rays, "nodes", list)
    monkeypatch.setattr(NodeWatch, "choose", lambda _: "n1")
    monkeypatch.setattr(engine_module, "this_node", lambda: "n1")
    monkeypatch.setattr(head, "_TRY_AGAIN_S", 0.01)
    yield made
    # Whoever asks Ray itself starts a cluster, without having said so.
    assert was_there or not ray.is_initialized()


@pytest.fixture
async def engine(fake: FakeCluster) -> AsyncIterator[RayEngine]:
    made = RayEngine()
    await made.connect()
    yield made
    await made.close()


async def next_event(engine: RayEngine) -> EngineEvent:
    return await asyncio.wait_for(anext(engine.events()), 8.0)


async def start(
    engine: RayEngine, fake: FakeCluster, process_id: str = ID, holds: tuple[Hold, ...] = ()
) -> FakeActor:
    actor = fake.handles[process_id] = FakeActor()
    await engine.start_process(ProcessSpec(process_id, "m:f", "t", holds=holds))
    actor.come_up(process_id)
    return actor


@pytest.mark.parametrize("is_own", [True, False])
async def test_no_node_joins_a_ray_that_remora_started(fake: FakeCluster, is_own: bool) -> None:
    InstanceSetup(home="", node_id="n1", token="t", http={}, has_fixed_nodes=is_own).save(fake)
    made = RayEngine()
    await made.connect()
    try:
        assert made.has_fixed_nodes is is_own
    finally:
        await made.close()


async def test_a_process_is_told_of_though_its_record_cannot_be_saved_yet(
    engine: RayEngine, fake: FakeCluster
) -> None:
    fake.failures["put"] = 2
    actor = await start(engine, fake)
    assert isinstance(await next_event(engine), ProcessStarted)
    await until_true(lambda: ProcessRecord.key(ID) in fake.values, "the record is saved")
    actor.over.set_result(("exit status 0", True))
    assert isinstance(await next_event(engine), ProcessExited)


@pytest.mark.parametrize("call", ["kill", "delete", "remove_group"])
async def test_an_exit_is_told_once_though_the_clean_up_fails_at_first(
    engine: RayEngine, fake: FakeCluster, call: str
) -> None:
    actor = await start(engine, fake, holds=BUNDLES)
    await next_event(engine)
    fake.failures[call] = 2
    actor.over.set_result(("exit status 3", False))
    assert await next_event(engine) == ProcessExited(ID, "exit status 3", False)
    await until_true(lambda: ID not in fake.handles, "its actor is gone")
    await until_true(lambda: ProcessRecord.key(ID) not in fake.values, "its record is gone")
    await until_true(lambda: not fake.groups, "its group is gone")
    await start(engine, fake, "app/d#2")
    assert (await next_event(engine)).process_id == "app/d#2"  # type: ignore[union-attr]


async def test_what_cannot_be_followed_is_ended_and_told(
    engine: RayEngine, fake: FakeCluster
) -> None:
    actor = fake.handles[ID] = FakeActor()
    await engine.start_process(ProcessSpec(ID, "m:f", "t"))
    actor.begun.set_result(b"no record")
    event = await next_event(engine)
    assert isinstance(event, ProcessExited)
    assert not event.expected
    assert "could not be followed" in event.reason
    assert fake.handles == {}


async def test_a_kill_that_fails_is_tried_again(
    engine: RayEngine, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()

    def kill(actor: FakeActor, *, no_restart: bool) -> None:
        assert no_restart
        fake.may_fail("ray.kill")
        loop.call_soon_threadsafe(actor.over.set_result, ("killed", False))

    monkeypatch.setattr(ray, "kill", kill)
    for end in (engine.kill_process, lambda process_id: engine.stop_process(process_id, 0.0)):
        await start(engine, fake)
        await next_event(engine)
        fake.failures["ray.kill"] = 2
        await end(ID)
        assert await next_event(engine) == ProcessExited(ID, "killed", True)


async def test_nodes_that_hang_hold_up_neither_each_other_nor_the_store(
    engine: RayEngine, fake: FakeCluster, tmp_path: Path
) -> None:
    asked: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer)
        await reader.read()
        asked.remove(writer)
        writer.close()

    server = await asyncio.start_unix_server(hang, tmp_path / "agent")
    fake.put(
        NodeRecord.key("n1"), msgspec.msgpack.encode(NodeRecord("n1", f"unix:{tmp_path}/agent"))
    )
    ids = [f"app/d#{number}" for number in range(5)]
    for each in ids:
        await start(engine, fake, each)
        await next_event(engine)
    for each in ids:
        await engine.stop_process(each, 60.0)
    await until_true(lambda: len(asked) == len(ids), "all signals are under way at once")
    await engine.put("state", b"1")
    assert len(asked) == len(ids)
    server.close()


async def test_a_group_goes_with_an_actor_that_ray_does_not_take(
    engine: RayEngine, fake: FakeCluster
) -> None:
    fake.failures["create"] = 1
    fake.failures["remove_group"] = 1
    with pytest.raises(EngineError, match=f"Ray takes no actor for {ID}: no create"):
        await start(engine, fake, holds=BUNDLES)
    await until_true(lambda: not fake.groups, "its group is gone")


async def test_groups_go_with_their_processes_under_a_later_controller(
    engine: RayEngine, fake: FakeCluster
) -> None:
    actor = await start(engine, fake, holds=BUNDLES)
    await next_event(engine)
    await engine.close()
    actor.over = asyncio.get_running_loop().create_future()
    # What a controller that was killed leaves: an actor that is not up, and a group without one.
    fake.handles["app/d#2"] = FakeActor()
    fake.groups |= {"app/d#2", "app/d#3"}
    later = RayEngine()
    await later.connect()
    try:
        assert isinstance(await next_event(later), ProcessStarted)
        assert list(fake.handles) == [ID]
        assert fake.groups == {ID}
        actor.over.set_result(("exit status 0", True))
        assert isinstance(await next_event(later), ProcessExited)
        assert fake.groups == set()
    finally:
        await later.close()
