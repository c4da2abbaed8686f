"""Nodes that take no processes: each is told of, and nothing is sent there. Ray itself is faked."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.e2e.waiting import until_true
from tests.ray.test_end import FakeCluster

from remora.engine.base import EngineEvent, NodeJoined, NodeLost, NodeRefused, ProcessSpec
from remora.engine.boot import UnfitNodeError
from remora.engine.ray import agent, fleet, replicas, staff
from remora.engine.ray import cluster as rays
from remora.engine.ray.cluster import Cluster, RayActor, RayNode
from remora.engine.ray.departure import Departure
from remora.engine.ray.holders import Holders
from remora.engine.ray.nodes import JOINING, NodeWatch
from remora.engine.ray.refusals import MOST_PAUSE_S, TRY_NODE_AGAIN_S, Refusals, pause_s
from remora.engine.ray.relay import Relay
from remora.engine.ray.setup import InstanceSetup, NodeRecord, find_node
from remora.engine.ray.sockets import open_doors
from remora.errors import InstanceError
from remora.home import Home

SETUP = InstanceSetup(home="/nowhere", node_id="a" * 20, token="t", http={})
OTHER_VERSION = "this node has Remora 0.2.0, the instance runs 0.1.0"


def node(letter: str, *, is_head: bool = False) -> RayNode:
    return RayNode(letter * 20, "10.0.0.1", {"CPU": 1.0}, {}, is_head, "/tmp/s", False)


HEAD, NEW = node("a", is_head=True), node("b")


class Rig:
    """The nodes of a cluster, whose agents come up or fail as a test says."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.events: list[EngineEvent] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.pauses: list[float] = []
        #: Why agents do not come up, by node.
        self.failures: dict[str, str] = {}
        self.watch = NodeWatch(
            self.cluster,
            SETUP,
            tell=self.events.append,
            ask=self._ask,
            see_to=self._see_to,
            spawn=self._spawn,
            occupied=frozenset,
            own_id=HEAD.node_id,
        )

    def ensure_agent(self, _: Cluster, node_id: str) -> NodeRecord:
        if node_id in self.failures:
            raise InstanceError(self.failures[node_id])
        return NodeRecord(node_id, "unix:/agent")

    async def _ask(self, call: Callable[..., Any], /, *args: Any) -> Any:
        return call(*args)

    async def _see_to(self, _: str, call: Callable[..., None], /, *args: Any) -> None:
        call(*args)

    def _spawn(self, work: Coroutine[Any, Any, None], _: str) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def look(self, *alive: RayNode) -> list[EngineEvent]:
        """One look, and all that comes of it; returns what is told."""
        self.events.clear()
        self.watch.look({each.node_id: each for each in alive}, (), 0.0)
        while self.tasks:
            await self.tasks.pop()
        return list(self.events)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig()
    monkeypatch.setattr(fleet, "ensure_agent", made.ensure_agent)
    monkeypatch.setattr(fleet, "ensure_proxies", lambda *_: None)

    async def wait(_: staff.Staffs, __: str, pause: float) -> None:
        made.pauses.append(pause)

    monkeypatch.setattr(staff.Staffs, "wait_after_failure", wait)
    return made


def refusals(events: list[EngineEvent]) -> list[tuple[str, str]]:
    return [
        (event.node.node_id[:1], event.reason) for event in events if isinstance(event, NodeRefused)
    ]


async def test_nothing_is_sent_to_a_node_before_its_agent_was_up(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="remora.engine")
    await rig.look(HEAD)
    assert (rig.watch.choose(), rig.watch.unfit) == (HEAD.node_id, [])
    rig.failures[NEW.node_id] = f"{OTHER_VERSION}.\nTraceback …"
    assert refusals(await rig.look(HEAD, NEW)) == [("b", JOINING), ("b", OTHER_VERSION)]
    assert rig.watch.unfit == [NEW.node_id]
    # Its tries go on, further and further apart, and the log says the same once.
    for _ in range(3):
        assert refusals(await rig.look(HEAD, NEW)) == [("b", OTHER_VERSION)]
    assert rig.pauses == [5.0, 10.0, 20.0, 40.0]
    assert [record.message for record in caplog.records] == [
        f"Node {NEW.node_id[:12]} takes no processes: {OTHER_VERSION}"
    ]
    rig.failures.clear()
    (joined,) = await rig.look(HEAD, NEW)
    assert isinstance(joined, NodeJoined)
    assert rig.watch.unfit == []
    assert caplog.records[-1].message == f"Node {NEW.node_id[:12]} takes processes now."


async def test_a_node_that_never_was_fit_is_forgotten_when_it_is_gone(rig: Rig) -> None:
    rig.failures[NEW.node_id] = OTHER_VERSION
    await rig.look(HEAD, NEW)
    (lost,) = await rig.look(HEAD)
    assert lost == NodeLost(NEW.node_id)  # type: ignore[arg-type]
    assert rig.watch.unfit == []


async def test_a_node_that_refuses_a_process_gets_none_for_a_while(rig: Rig) -> None:
    await rig.look(HEAD, NEW)
    rig.events.clear()
    rig.watch.distrust(HEAD.node_id, OTHER_VERSION)
    # Another one that was on its way there.
    rig.watch.distrust(HEAD.node_id, OTHER_VERSION)
    assert (rig.watch.choose(), rig.watch.unfit) == (NEW.node_id, [HEAD.node_id])
    while rig.tasks:
        await rig.tasks.pop()
    assert [type(event) for event in rig.events] == [NodeRefused, NodeJoined]
    assert (rig.watch.choose(), rig.watch.unfit) == (HEAD.node_id, [])


@given(st.integers(1, 5000))
def test_pauses_grow_to_a_limit(times: int) -> None:
    assert TRY_NODE_AGAIN_S <= pause_s(times) <= pause_s(times + 1) <= MOST_PAUSE_S


def test_each_reason_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    lacks = Refusals()
    for reason in ("one", "one", "two", "two"):
        lacks.note("n", "has no agent", reason)
    assert [record.message for record in caplog.records] == [
        "Node n has no agent: one",
        "Node n has no agent: two",
    ]
    assert lacks.told("n") == "has no agent: two"
    lacks.forget("n")
    assert lacks.told("n") == ""


@pytest.mark.parametrize(
    ("unfit", "selector"),
    [([], None), (["b", "c"], {"ray.io/node-id": "!in(b,c)"})],
)
def test_ray_moves_no_replica_to_a_node_that_is_not_fit(
    unfit: list[str], selector: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(fleet, "create", lambda _, **given: made.append(given))
    spec = ProcessSpec(process_id="a/d#1", entrypoint="m:f", title="t")
    replicas.create_replica(spec, "n", "a", unfit)
    assert made[0]["soft"]
    assert made[0]["options"].get("label_selector") == selector


def test_an_unfit_node_is_named_across_processes() -> None:
    error = UnfitNodeError(OTHER_VERSION, "n")
    other = msgspec.convert(error.args, tuple[str, str])
    again = UnfitNodeError(*other)
    assert (str(again), again.node_id) == (OTHER_VERSION, "n")


def test_an_agent_that_ends_at_each_start_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    name = fleet.agent_name(NEW.node_id)
    cluster.alive.append(name)
    monkeypatch.setattr(
        cluster, "actors", lambda: {name: RayActor(name, 0, 3, NEW.node_id)}, raising=False
    )
    with pytest.raises(InstanceError, match="install the same version of Remora"):
        fleet._require_life(cluster, name)
    assert cluster.killed == [name]


def test_a_node_whose_port_is_taken_has_no_front_door_and_takes_replicas() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        http = {"host": "127.0.0.1", "port": other.getsockname()[1]}
        setup = msgspec.structs.replace(SETUP, http=http)
        doors, why = open_doors(NEW, setup)
        assert doors == {}
        assert str(http["port"]) in why
        # People are told of those.
        with pytest.raises(InstanceError):
            open_doors(HEAD, setup)
    doors, why = open_doors(NEW, setup)
    assert (list(doors), why) == (["http"], "")
    doors["http"].close()


def test_a_node_without_its_front_door_gets_no_proxies() -> None:
    cluster = FakeCluster()
    NodeRecord(NEW.node_id, "unix:/agent", no_doors="port 8000 is in use").save(cluster)
    setup = msgspec.structs.replace(SETUP, http={"host": "0.0.0.0", "port": 8000})
    with pytest.raises(InstanceError, match="port 8000 is in use"):
        fleet.ensure_proxies(cluster, setup, NEW)


async def test_a_front_door_opens_when_its_port_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_REOPEN_S", 0.01)
    monkeypatch.setattr(rays, "here", lambda: NEW)
    tries: list[RayNode] = []

    def tried(here: RayNode, setup: InstanceSetup) -> tuple[dict[str, socket.socket], str]:
        tries.append(here)
        return open_doors(here, setup)

    monkeypatch.setattr(agent, "open_doors", tried)
    cluster = FakeCluster()
    record = NodeRecord(NEW.node_id, "unix:/agent", no_doors="taken")
    departure = Departure(cluster, record, Holders(), Relay(cluster), lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        http = {"host": "127.0.0.1", "port": other.getsockname()[1]}
        setup = msgspec.structs.replace(SETUP, http=http)
        doors = agent.Doors(setup, Home(tmp_path), {}, None, "taken")
        opening = asyncio.ensure_future(agent._open_late(setup, doors, departure, record))
        await until_true(lambda: len(tries) > 1, "it has been tried again")
        assert find_node(cluster, NEW.node_id) is None
    await asyncio.wait_for(opening, 10.0)
    found = find_node(cluster, NEW.node_id)
    assert found is not None
    assert (found.http_url, found.no_doors) == (f"http://127.0.0.1:{http['port']}", "")
    # Now its proxies are made.
    assert doors.none_because == ""
    doors.close()
