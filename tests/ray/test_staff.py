"""Agents and proxies come to nodes with replicas and leave them again. Ray itself is faked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.e2e.waiting import until_true
from tests.ray.test_end import FakeCluster

from remora.engine.base import DoorsClosing, DoorsOpened, EngineEvent
from remora.engine.ray import departure, fleet, refusals, sockets, staff
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.departure import Departure
from remora.engine.ray.head import Head
from remora.engine.ray.holders import Holders
from remora.engine.ray.patience import MOST_NODES, wait_for_end, wait_for_node
from remora.engine.ray.relay import Relay
from remora.engine.ray.setup import InstanceSetup, NodeRecord, find_node, find_staff
from remora.engine.ray.staff import Staffs
from remora.engine.ray.staffing import IDLE, Busy, Phase, Staff
from remora.errors import ConnectionLostError, EngineError
from remora.types import NodeID
from remora.wire.codec import unpack

SETUP = InstanceSetup(home="/nowhere", node_id="n" * 20, token="t", http={}, min_closing_s=30.0)
ID = "m" * 20
NODE = RayNode(ID, "10.0.0.1", {"CPU": 1.0}, {}, False, "/tmp/s", False)
RECORD = NodeRecord(ID, "unix:/agent")
#: The front doors of the node close, and open again.
CLOSES, OPENS = DoorsClosing(NodeID(ID)), DoorsOpened(NodeID(ID))


class Rig:
    """The agents and proxies of one node, whose agent and clock a test is."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.events: list[EngineEvent] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.now = 1000.0
        #: What the agent says; an error: it is not reached.
        self.busy: Busy | Exception = IDLE
        self.asked: list[str] = []
        #: How often proxies cannot be made.
        self.no_proxies = 0
        self.made: list[str] = []
        self.staffs = Staffs(
            cluster,
            SETUP,
            tell=self.events.append,
            ask=self._ask,
            see_to=self._see_to,
            spawn=self._spawn,
            clock=lambda: self.now,
        )

    async def ask_agent(self, _: NodeRecord, __: str, method: str, **___: Any) -> Busy:
        self.asked.append(method)
        if isinstance(self.busy, Exception):
            raise self.busy
        if method == "depart" and self.busy == IDLE:
            self.cluster.delete(NodeRecord.key(ID))
        return self.busy

    def ensure_agent(self, _: Cluster, node_id: str) -> NodeRecord:
        self.cluster.alive.append(fleet.agent_name(node_id))
        RECORD.save(self.cluster)
        return RECORD

    def ensure_proxies(self, _: Cluster, __: InstanceSetup, node: RayNode) -> None:
        if self.no_proxies:
            self.no_proxies -= 1
            raise EngineError("no proxies today")
        name = fleet.proxy_name(node.node_id, 1, home=False)
        self.made.append(name)
        self.cluster.alive.append(name)

    async def _ask(self, call: Callable[..., Any], /, *args: Any) -> Any:
        return call(*args)

    async def _see_to(self, _: str, call: Callable[..., None], /, *args: Any) -> None:
        call(*args)

    def _spawn(self, work: Coroutine[Any, Any, None], _: str) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def look(self, *, after_s: float = 0.0, occupied: bool = False) -> Phase:
        """One look, and all that comes of it; returns how far they are then."""
        self.now += after_s
        record_at = self.now if NodeRecord.key(ID) in self.cluster.values else None
        self.staffs.review(NODE, is_occupied=occupied, record_at=record_at)
        await self.settle()
        return self.staffs.phase(ID)

    async def settle(self) -> None:
        while self.tasks:
            await self.tasks.pop()

    def stored(self) -> Phase:
        found = find_staff(self.cluster, ID)
        assert found is not None
        return found.phase


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    cluster = FakeCluster()
    made = Rig(cluster)
    monkeypatch.setattr(staff, "ask_agent", made.ask_agent)
    monkeypatch.setattr(staff, "_ASK_EVERY_S", 0.0)
    monkeypatch.setattr(staff, "TRY_NODE_AGAIN_S", 0.0)
    # Their proxies have ended as soon as they are told to.
    monkeypatch.setattr(staff, "_LAST_REQUESTS_S", 0.0)
    monkeypatch.setattr(fleet, "ensure_agent", made.ensure_agent)
    monkeypatch.setattr(fleet, "ensure_proxies", made.ensure_proxies)
    return made


def take(rig: Rig) -> None:
    """A node has just come, with its agent."""
    rig.ensure_agent(rig.cluster, ID)
    rig.staffs.take(NODE)


async def test_they_leave_a_node_without_replicas_and_come_back_for_one(rig: Rig) -> None:
    take(rig)
    assert await rig.look(occupied=True) is Phase.HERE
    assert rig.made == [f"proxy-1@{ID[:12]}"]
    assert rig.asked == []
    # The first look without a replica asks, the next one knows.
    assert await rig.look() is Phase.HERE
    assert await rig.look() is Phase.CLOSING
    assert rig.events == [CLOSES]
    assert rig.stored() is Phase.CLOSING
    assert await rig.look(after_s=29.9) is Phase.CLOSING
    assert await rig.look(after_s=0.2) is Phase.AWAY
    assert rig.cluster.alive == []
    assert rig.stored() is Phase.AWAY
    assert NodeRecord.key(ID) not in rig.cluster.values
    assert await rig.look(after_s=100.0) is Phase.AWAY
    assert await rig.look(occupied=True) is Phase.HERE
    assert rig.events == [CLOSES, OPENS]
    assert rig.cluster.alive == [f"agent@{ID[:12]}", f"proxy-1@{ID[:12]}"]


async def test_a_replica_that_comes_while_they_close_has_them_stay(rig: Rig) -> None:
    take(rig)
    await rig.look()
    assert await rig.look() is Phase.CLOSING
    assert await rig.look(after_s=29.0, occupied=True) is Phase.HERE
    await rig.look()
    # The whole time begins again.
    assert await rig.look() is Phase.CLOSING
    assert await rig.look(after_s=29.0) is Phase.CLOSING
    assert rig.events == [CLOSES, OPENS, CLOSES]


async def test_requests_under_way_end_first(rig: Rig) -> None:
    take(rig)
    await rig.look()
    await rig.look()
    rig.busy = Busy(1, 0)
    await rig.look()
    assert await rig.look(after_s=1000.0) is Phase.CLOSING
    rig.busy = IDLE
    await rig.look()
    assert await rig.look() is Phase.AWAY


async def test_a_program_that_is_connected_has_them_stay(rig: Rig) -> None:
    take(rig)
    await rig.look()
    assert await rig.look() is Phase.CLOSING
    rig.busy = Busy(0, 1)
    await rig.look()
    assert await rig.look(after_s=40.0) is Phase.HERE
    assert rig.events == [CLOSES, OPENS]


async def test_an_agent_that_is_needed_after_all_says_so(rig: Rig) -> None:
    take(rig)
    await rig.look()
    await rig.look()
    rig.now += 40.0
    rig.staffs.review(NODE, is_occupied=False)
    # It came between the last question and the end.
    rig.busy = Busy(0, 1)
    await rig.settle()
    assert rig.asked[-1] == "depart"
    assert rig.stored() is Phase.CLOSING
    await rig.look()
    assert await rig.look() is Phase.HERE
    assert rig.cluster.alive == [f"agent@{ID[:12]}"]


async def test_an_agent_that_is_not_reached_does_not_leave(rig: Rig) -> None:
    take(rig)
    rig.busy = ConnectionLostError("cut off")
    for _ in range(3):
        assert await rig.look(after_s=100.0) is Phase.HERE
    assert rig.events == []


async def test_an_agent_that_somebody_on_the_node_has_started_is_noticed(rig: Rig) -> None:
    rig.staffs.take(NODE, Staff(Phase.AWAY, rig.now))
    assert await rig.look(after_s=1.0) is Phase.AWAY
    rig.ensure_agent(rig.cluster, ID)
    assert await rig.look(after_s=1.0) is Phase.HERE
    assert rig.made == []


async def test_what_was_read_before_they_left_brings_them_not_back(rig: Rig) -> None:
    rig.staffs.take(NODE, Staff(Phase.AWAY, rig.now))
    rig.staffs.review(NODE, is_occupied=False, record_at=rig.now - 0.1)
    assert rig.staffs.phase(ID) is Phase.AWAY


async def test_a_later_controller_goes_on_where_an_earlier_one_was(rig: Rig) -> None:
    rig.ensure_agent(rig.cluster, ID)
    rig.staffs.take(NODE, Staff(Phase.CLOSING, rig.now - 20.0))
    assert rig.events == [CLOSES]
    await rig.look()
    assert await rig.look(after_s=9.0) is Phase.CLOSING
    assert await rig.look(after_s=2.0) is Phase.AWAY


@pytest.mark.parametrize("has_agreed", [True, False])
async def test_a_later_controller_has_them_leave_that_were_on_their_way(
    rig: Rig, has_agreed: bool
) -> None:
    rig.ensure_agent(rig.cluster, ID)
    if has_agreed:
        rig.cluster.delete(NodeRecord.key(ID))
    rig.staffs.take(NODE, Staff(Phase.LEAVING, rig.now - 40.0))
    await rig.settle()
    assert rig.staffs.phase(ID) is Phase.AWAY
    assert rig.asked == ([] if has_agreed else ["depart"])
    assert rig.cluster.alive == []


@pytest.mark.parametrize("call", ["put", "kill", "names"])
async def test_a_head_that_is_away_meanwhile_leaves_nothing_behind(rig: Rig, call: str) -> None:
    take(rig)
    await rig.look(occupied=True)
    await rig.look()
    await rig.look()
    rig.cluster.failures[call] = 1
    await rig.look(after_s=40.0)
    await rig.look()
    assert await rig.look(after_s=40.0) is Phase.AWAY
    assert rig.cluster.alive == []
    assert rig.stored() is Phase.AWAY


async def test_proxies_that_could_not_be_made_are_tried_again(rig: Rig) -> None:
    take(rig)
    rig.no_proxies = 1
    await rig.look(occupied=True)
    assert rig.made == []
    await rig.look(occupied=True)
    await rig.look(occupied=True)
    assert rig.made == [f"proxy-1@{ID[:12]}"]


async def test_an_error_that_nobody_expects_leaves_no_node_in_a_phase(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "TRY_NODE_AGAIN_S", 0.0)
    errors = [ValueError("what Ray's client raises")]

    def fails_once(cluster: Cluster, node_id: str) -> NodeRecord:
        if errors:
            raise errors.pop()
        return rig.ensure_agent(cluster, node_id)

    monkeypatch.setattr(fleet, "ensure_agent", fails_once)
    rig.staffs.take(NODE, Staff(Phase.AWAY, rig.now))
    assert await rig.look(occupied=True) is Phase.AWAY
    assert await rig.look(occupied=True) is Phase.HERE
    rig.busy = LookupError("no answer")
    assert await rig.look() is Phase.HERE
    # It is asked again all the same.
    rig.busy = IDLE
    await rig.look()
    assert await rig.look() is Phase.CLOSING
    rig.staffs.review(NODE, is_occupied=False)
    await rig.settle()
    rig.now += 40.0
    rig.staffs.review(NODE, is_occupied=False)
    rig.busy = LookupError("no answer")
    await rig.settle()
    assert rig.asked[-1] == "depart"
    assert rig.stored() is Phase.CLOSING


async def test_proxies_come_back_where_only_the_answer_was_lost(rig: Rig) -> None:
    take(rig)
    await rig.look(occupied=True)
    await rig.look()
    await rig.look()
    rig.now += 40.0
    rig.staffs.review(NODE, is_occupied=False)
    rig.busy = ConnectionLostError("it has just left")
    await rig.settle()
    rig.cluster.alive.clear()
    assert await rig.look(occupied=True) is Phase.HERE
    assert rig.cluster.alive == [f"proxy-1@{ID[:12]}"]


async def test_what_is_saved_late_is_not_older_than_what_was_saved_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Head(rig._spawn)
    rig.staffs._ask, rig.staffs._see_to = head.ask, head.see_to
    begun, goes_on = threading.Event(), threading.Event()
    written: list[Phase] = []

    def put(key: str, value: bytes) -> None:
        phase = msgspec.msgpack.decode(value, type=Staff).phase
        if phase is Phase.CLOSING:
            begun.set()
            goes_on.wait(10.0)
        written.append(phase)

    take(rig)
    await rig.look()
    monkeypatch.setattr(rig.cluster, "put", put)
    rig.staffs.review(NODE, is_occupied=False)
    assert await asyncio.to_thread(begun.wait, 10.0)
    rig.now += 40.0
    rig.staffs.review(NODE, is_occupied=False)
    assert rig.staffs.phase(ID) is Phase.LEAVING
    # Whatever could overtake what is being written does so.
    await asyncio.sleep(0.05)
    goes_on.set()
    await rig.settle()
    head.close()
    assert written == [Phase.CLOSING, Phase.LEAVING, Phase.AWAY]


async def test_many_nodes_that_do_not_come_up_keep_nobody_waiting() -> None:
    goes_on = threading.Event()
    waiting = [asyncio.ensure_future(wait_for_node(goes_on.wait, 30.0)) for _ in range(MOST_NODES)]
    try:
        assert await asyncio.wait_for(asyncio.to_thread(divmod, 7, 2), 10.0) == (3, 1)
        assert await asyncio.wait_for(wait_for_end(divmod, 7, 2), 10.0) == (3, 1)
    finally:
        goes_on.set()
    assert all(await asyncio.gather(*waiting))


# ------------------------------------------------------------------------- the agent's own side


@contextmanager
def held(holders: Holders, count: Callable[[], int]) -> Iterator[None]:
    """Somebody holds on to an agent, and has so much under way."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        while theirs.recv(1):
            theirs.sendall(sockets.ANSWER.pack(count()))

    threads = [
        threading.Thread(target=holders.follow, args=(ours,)),
        threading.Thread(target=answer),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        theirs.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5.0)
        ours.close()
        theirs.close()


async def test_holders_say_how_much_they_have_under_way() -> None:
    holders = Holders()
    with held(holders, lambda: 2), held(holders, lambda: 3):
        await until_true(lambda: holders.pids() == {os.getpid()}, "both hold on")
        await until_true(lambda: holders.num_ongoing() == 5, "both are asked")
    assert holders.pids() == set()
    assert holders.num_ongoing() == 0


class Departing:
    """An agent that is asked to leave."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.holders = Holders()
        self.relay = Relay(self.cluster)
        self.is_closed = False
        RECORD.save(self.cluster)
        self.departure = Departure(self.cluster, RECORD, self.holders, self.relay, self._close)

    def _close(self) -> None:
        self.is_closed = True

    async def leave(self) -> Busy:
        return unpack(await self.departure.depart(b""), Busy)


async def test_an_agent_leaves_that_nobody_needs() -> None:
    agent = Departing()
    assert await agent.leave() == IDLE
    assert agent.is_closed
    assert find_node(agent.cluster, ID) is None
    await asyncio.wait_for(agent.departure.over.wait(), 5.0)


async def test_an_agent_with_requests_under_way_or_a_program_stays(tmp_path: Path) -> None:
    agent = Departing()
    with held(agent.holders, lambda: 1):
        await until_true(lambda: agent.holders.pids() == {os.getpid()}, "it holds on")
        assert await agent.leave() == Busy(1, 0)
    async with await asyncio.start_unix_server(agent.relay.serve, tmp_path / "relay"):
        _, writer = await asyncio.open_unix_connection(tmp_path / "relay")
        await until_true(lambda: agent.relay.num_callers(()) == 1, "the relay has a caller")
        # A proxy is none.
        assert agent.relay.num_callers({os.getpid()}) == 0
        assert await agent.leave() == Busy(0, 1)
        writer.close()
        await until_true(lambda: agent.relay.num_callers(()) == 0, "it has left")
    assert not agent.is_closed
    assert find_node(agent.cluster, ID) == RECORD


async def test_who_comes_in_the_last_moment_is_not_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Departing()
    delete = agent.cluster.delete

    def someone_comes(key: str) -> None:
        delete(key)
        agent.relay._callers.append(1)

    monkeypatch.setattr(agent.cluster, "delete", someone_comes)
    assert await agent.leave() == Busy(0, 1)
    assert find_node(agent.cluster, ID) == RECORD
    assert not agent.is_closed


async def test_a_holder_that_comes_in_the_last_moment_is_neither_left_nor_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Departing()
    delete = agent.cluster.delete
    ended: list[int] = []
    monkeypatch.setattr("remora.engine.linux.send_signal", lambda pid, _: ended.append(pid))
    with contextlib.ExitStack() as stack:

        def someone_comes(key: str) -> None:
            delete(key)
            stack.enter_context(held(agent.holders, lambda: 0))
            came = threading.Event()
            while not agent.holders.pids():
                came.wait(0.01)

        monkeypatch.setattr(agent.cluster, "delete", someone_comes)
        assert await agent.leave() == Busy(1, 0)
    assert find_node(agent.cluster, ID) == RECORD
    assert not agent.is_closed
    assert ended == []


async def test_an_agent_stays_whose_asker_has_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Departing()
    deleting, goes_on = threading.Event(), threading.Event()
    delete = agent.cluster.delete

    def slow(key: str) -> None:
        deleting.set()
        goes_on.wait(10.0)
        delete(key)

    monkeypatch.setattr(agent.cluster, "delete", slow)
    asking = asyncio.ensure_future(agent.leave())
    await asyncio.to_thread(deleting.wait, 10.0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    goes_on.set()
    # The next one is asked only after that.
    assert unpack(await agent.departure.busy(b""), Busy) == IDLE
    assert find_node(agent.cluster, ID) == RECORD
    assert not agent.is_closed
    assert await agent.leave() == IDLE


async def test_an_agent_that_cannot_leave_says_again_that_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(departure, "_TRY_AGAIN_S", 0.0)
    agent = Departing()
    delete = agent.cluster.delete

    def half(key: str) -> None:
        delete(key)
        raise EngineError("the answer was lost")

    monkeypatch.setattr(agent.cluster, "delete", half)
    agent.cluster.failures["put"] = 2
    with pytest.raises(EngineError, match="lost"):
        await agent.leave()
    assert find_node(agent.cluster, ID) == RECORD
    assert not agent.is_closed
