"""The end of an instance, of a process and of a node in Ray, with a head that fails; without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import ray

from remora.engine.base import EngineEvent, ProcessSpec
from remora.engine.boot import StartError
from remora.engine.claim import Claim, Owner
from remora.engine.ray import agent, end, engine, fleet, groups, head, process, sockets
from remora.engine.ray import cluster as rays
from remora.engine.ray.cluster import HEAD_RESOURCE, Cluster, RayNode
from remora.engine.ray.end import end_processes
from remora.engine.ray.head import Head
from remora.engine.ray.nodes import NodeWatch
from remora.engine.ray.process import ProcessActor, ProcessRequest
from remora.engine.ray.setup import (
    CONTROLLER_ADDRESS,
    ENDING,
    InstanceSetup,
    NodeRecord,
    staff_key,
)
from remora.engine.ray.staffing import Phase, Staff
from remora.errors import EngineError
from remora.home import Home
from remora.transport.membership import Membership

SETUP = InstanceSetup(home="/nowhere", node_id="n" * 20, token="t", http={})


class FakeCluster(Cluster):
    """Values and names of actors; calls fail as often as they are told to."""

    def __init__(self) -> None:
        super().__init__("remora")
        self.values: dict[str, bytes] = {}
        self.alive: list[str] = []
        self.killed: list[str] = []
        #: How often each call fails before it works.
        self.failures: dict[str, int] = {}
        #: What the controller begins when it is killed.
        self.last_moment: list[str] = []

    def _do(self, call: str) -> None:
        if self.failures.get(call, 0) > 0:
            self.failures[call] -= 1
            raise EngineError(f"{call} fails")

    def get(self, key: str) -> bytes | None:
        self._do("get")
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self._do("put")
        self.values[key] = value

    def delete(self, key: str) -> None:
        self._do("delete")
        self.values.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        self._do("keys")
        return sorted(key for key in self.values if key.startswith(prefix))

    def names(self) -> list[str]:
        self._do("names")
        return list(self.alive)

    def actor(self, name: str) -> Any:
        return name if name in self.alive else None

    def kill(self, name: str) -> None:
        self._do("kill")
        self.killed.append(name)
        if name in self.alive:
            self.alive.remove(name)
        if name == fleet.CONTROLLER:
            self.alive += self.last_moment
            self.last_moment = []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(end, "_BETWEEN_TRIES_S", 0.0)
    monkeypatch.setattr(end, "remove_groups", lambda namespace: None)
    cluster = FakeCluster()
    cluster.alive = ["app/a#1", "controller", "proxy-1"]
    node = msgspec.msgpack.encode(NodeRecord("n", "unix:/nowhere/a.sock"))
    cluster.values = {"instance": b"", "node/n": node, "store/apps": b""}
    return cluster


@pytest.mark.parametrize("call", ["put", "names", "kill", "keys", "delete"])
def test_what_fails_at_the_end_is_tried_again(cluster: FakeCluster, call: str) -> None:
    cluster.failures[call] = 3
    end_processes(cluster, SETUP, 0.0)
    assert cluster.alive == []
    assert cluster.values == {"store/apps": b""}


def test_a_step_that_never_works_keeps_no_other_from_being_done(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end, "_TRY_FOR_S", 0.05)
    cluster.failures["put"] = 1_000_000
    with pytest.raises(EngineError, match="left in parts: put fails"):
        end_processes(cluster, SETUP, 0.0)
    assert cluster.alive == []
    assert cluster.values == {"store/apps": b""}


def test_the_controller_is_killed_first_and_what_it_began_last_as_well(
    cluster: FakeCluster,
) -> None:
    cluster.last_moment = ["app/a#2"]
    end_processes(cluster, SETUP, 0.0)
    assert cluster.killed == ["controller", "app/a#1", "proxy-1", "app/a#2"]


def test_a_controller_that_ends_the_others_always_sees_that_it_is_to_end(
    cluster: FakeCluster,
) -> None:
    end_processes(cluster, SETUP, 0.0, spare=fleet.CONTROLLER)
    assert cluster.alive == ["controller"]
    assert cluster.values == {"store/apps": b"", ENDING: b"1"}


def test_agents_clean_up_before_anything_is_killed(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    async def tell(node: NodeRecord, token: str, command: str, body: object = None) -> None:
        told.append((node.node_id, token, command, len(cluster.killed)))

    monkeypatch.setattr(end, "_tell", tell)
    end_processes(cluster, SETUP, 0.0)
    assert told == [("n", SETUP.token, "leave", 0)]


async def test_an_agent_that_leaves_leaves_logs_and_nothing_else(tmp_path: Path) -> None:
    home = Home(tmp_path / ("long" * 20))
    claim = Claim.take(home)
    claim.write_owner(Owner(1, "token", engine="ray"))
    for path in (home.controller_socket, home.sockets / "a7.sock", home.tally_file):
        path.touch()
    Membership("n", "secret").write(home)
    (home.logs / "agent.log").touch()
    await agent._leave(home, claim, b"")
    assert not home.sockets.exists()
    assert {each.name for each in home.root.rglob("*")} == {"logs", "agent.log", "instance.lock"}
    assert home.lock_file.read_bytes() == b""
    claim.close()


def test_the_actor_that_somebody_else_made_first_is_taken(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(request: ProcessRequest, **options: Any) -> Any:
        cluster.alive += others
        raise ValueError("the name is taken")

    monkeypatch.setattr(fleet, "create", create)
    others = [name := fleet.agent_name("m" * 20)]
    assert fleet.begin_agent(cluster, "m" * 20) == name
    others = []
    with pytest.raises(EngineError, match="Ray takes no actor agent@kkk"):
        fleet.begin_agent(cluster, "k" * 20)


def test_an_actor_that_ray_took_although_it_said_no_is_killed(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_replica(
        spec: ProcessSpec, namespace: str, node_id: str, unfit: Sequence[str]
    ) -> Any:
        cluster.alive.append(spec.process_id)
        raise TimeoutError("no answer")

    monkeypatch.setattr(engine, "create_replica", create_replica)

    async def start() -> None:
        made = engine.RayEngine()
        monkeypatch.setattr(made, "_cluster", cluster)
        monkeypatch.setattr(
            made,
            "_nodes",
            SimpleNamespace(fit={}, unfit=[], choose=lambda: "n", expect=bool),
            raising=False,
        )
        with pytest.raises(EngineError, match="no answer"):
            await made.start_process(ProcessSpec("app/a#3", entrypoint="m:f", title="t"))
        await made.close()

    asyncio.run(start())
    assert cluster.killed == ["app/a#3"]


class Watched:
    """A `NodeWatch` with what it told, without a loop that looks."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.events: list[EngineEvent] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._cluster = cluster
        self.watch = NodeWatch(
            cluster,
            SETUP,
            tell=self.events.append,
            ask=self._ask,
            see_to=Head(self._spawn).see_to,
            spawn=self._spawn,
            occupied=list,
        )

    async def _ask(self, call: Callable[..., Any], /, *args: Any) -> Any:
        return call(*args)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def settle(self) -> None:
        """Wait for all that was begun."""
        while self.tasks:
            await self.tasks.pop()


async def test_nodes_that_went_while_no_controller_looked_are_forgotten(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_TRY_AGAIN_S", 0.0)
    monkeypatch.setattr(rays, "nodes", list)
    gone = "g" * 20
    cluster.values = {NodeRecord.key(gone): b"", staff_key(gone): b""}
    cluster.alive = ["controller", fleet.agent_name(gone), fleet.agent_name("m" * 20)]
    cluster.failures = {"delete": 2, "kill": 1}
    watched = Watched(cluster)
    await watched.watch.begin()
    await watched.settle()
    assert cluster.values == {}
    assert cluster.alive == ["controller", fleet.agent_name("m" * 20)]
    assert watched.events == []


class GivesUpError(Exception):
    """What Ray's `exit_actor` is here."""


def give_up() -> None:
    raise GivesUpError


@pytest.mark.parametrize(
    ("kind", "mark", "comes_back"),
    [
        ("agent", NodeRecord.key("m" * 20), True),
        ("proxy", NodeRecord.key("m" * 20), True),
        ("controller", CONTROLLER_ADDRESS, True),
        ("agent", NodeRecord.key("k" * 20), False),
        ("controller", NodeRecord.key("m" * 20), False),
    ],
)
def test_a_permanent_process_gives_up_only_at_its_first_start(
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    mark: str,
    comes_back: bool,
) -> None:
    tries = []

    def begin(_: ProcessActor) -> bytes:
        tries.append(kind)
        if len(tries) < 4:
            raise StartError("bad certificate")
        return b""

    record = msgspec.msgpack.encode(NodeRecord(mark, "unix:/a"))
    # The head is away for one of the tries.
    cluster.values, cluster.failures = {mark: record}, {"put": 1}
    monkeypatch.setattr(process, "Cluster", lambda _: cluster)
    monkeypatch.setattr(process, "_BETWEEN_STARTS_S", 0.0)
    monkeypatch.setattr(rays, "is_started_again", lambda: False)
    monkeypatch.setattr(rays, "this_node", lambda: "m" * 20)
    monkeypatch.setattr(ray.actor, "exit_actor", give_up)
    monkeypatch.setattr(ProcessActor, "begin", begin)
    monkeypatch.setattr(ProcessActor, "_call_run", lambda _: None)
    request = ProcessRequest(
        process_id=kind, kind=kind, entrypoint="m:f", title="t", namespace="n", permanent=True
    )
    with nullcontext() if comes_back else pytest.raises(GivesUpError):
        ProcessActor(msgspec.msgpack.encode(request))
    assert len(tries) == (4 if comes_back else 2)
    assert (f"failure/{kind}" in cluster.values) is not comes_back


@pytest.mark.parametrize("kind", ["agent", "proxy", "admin"])
def test_what_is_on_its_way_out_of_a_node_does_not_come_back(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    here = RayNode("m" * 20, "10.0.0.1", {}, {}, False, "/tmp/s", False)
    cluster.values = {
        NodeRecord.key(here.node_id): msgspec.msgpack.encode(NodeRecord(here.node_id, "unix:/a")),
        staff_key(here.node_id): msgspec.msgpack.encode(Staff(Phase.LEAVING, 0.0)),
    }
    monkeypatch.setattr(process, "Cluster", lambda _: cluster)
    monkeypatch.setattr(process, "require_setup", lambda _: SETUP)
    monkeypatch.setattr(rays, "here", lambda: here)
    monkeypatch.setattr(rays, "this_node", lambda: here.node_id)
    monkeypatch.setattr(rays, "is_started_again", lambda: False)
    monkeypatch.setattr(ray.actor, "exit_actor", give_up)
    request = ProcessRequest(
        process_id=kind, kind=kind, entrypoint="m:f", title="t", namespace="n", permanent=True
    )
    with pytest.raises(GivesUpError):
        ProcessActor(msgspec.msgpack.encode(request))


@pytest.mark.parametrize("is_head", [True, False])
def test_the_controller_is_bound_to_the_head_wherever_that_is(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, is_head: bool
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(fleet, "create", lambda _, **options: made.append(options))
    node = RayNode("m" * 20, "10.0.0.1", {}, {}, is_head, "/tmp/s", False)
    fleet.start_controller(cluster, SETUP, node)
    if is_head:
        assert made == [{"node_id": "", "options": {"resources": {HEAD_RESOURCE: 0.001}}}]
    else:
        assert made == [{"node_id": node.node_id, "options": {}}]


def test_a_controller_on_a_new_head_tells_of_no_front_door_on_a_host_that_is_gone(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = RayNode("m" * 20, "10.0.0.2", {}, {}, True, "/tmp/s", False)
    for node_id, url in ((SETUP.node_id, "http://old"), (here.node_id, "http://new")):
        NodeRecord(node_id, "unix:/a", url).save(cluster)
    alive = [here]
    monkeypatch.setattr(rays, "nodes", lambda: alive)
    assert sockets._addresses(cluster, SETUP, here)["http_url"] == "http://new"
    alive.append(msgspec.convert(here.__dict__ | {"node_id": SETUP.node_id}, RayNode))
    assert sockets._addresses(cluster, SETUP, here)["http_url"] == "http://old"


async def test_a_later_controller_goes_on_with_an_end_that_was_begun(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.values[ENDING] = b"1"
    monkeypatch.setattr(engine, "Cluster", lambda _: cluster)
    monkeypatch.setattr(engine, "require_setup", lambda _: SETUP)
    monkeypatch.setattr(engine, "this_node", lambda: "m" * 20)
    monkeypatch.setattr(engine, "_PROXY_GRACE_S", 0.0)
    monkeypatch.setattr(groups, "remove_groups", lambda *_: None)
    monkeypatch.setattr(rays, "nodes", list)
    made = engine.RayEngine()
    await made.connect()
    assert [event async for event in made.events()] == []
    assert cluster.alive == ["controller"]
    assert cluster.values == {"store/apps": b"", ENDING: b"1"}
    await made.close()
