"""Request routers of users: what they decide happens, and what they do wrong harms nobody."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import random
import threading
from typing import Any

import pytest
from msgspec.structs import replace
from tests.integration.rig import Node, Rig, call, envelope, until

from remora.build.pickling import dumps_by_value
from remora.calls.selection import reserved
from remora.config import PolicySetup
from remora.errors import RequestCancelledError
from remora.experimental.consistent_hash_router import ConsistentHashRouter
from remora.experimental.round_robin_router import RoundRobinRouter
from remora.request_router import (
    FIFOMixin,
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    PowerOfTwoChoicesRequestRouter,
    RequestRouter,
    RunningReplica,
)
from remora.router import custom, user_side
from remora.router.router import Router
from remora.wire import values

Ranks = list[list[RunningReplica]]


class App:
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def which(self, *_: object) -> str:
        return self.name

    async def hold(self, *_: object) -> str:
        await self.gate.wait()
        return self.name

    name = ""


def setup_of(cls: type, **kwargs: Any) -> PolicySetup:
    return PolicySetup("custom", kwargs, dumps_by_value(cls, "router"), 0.005, 2.0, 0.02)


async def routed(rig: Rig, cls: type, count: int = 3, limit: int = 5, **kwargs: Any) -> Any:
    nodes = [await rig.node(App, max_ongoing=limit) for _ in range(count)]
    for number, node in enumerate(nodes):
        node.target.name = f"r{number}"
    return nodes, await rig.routed(*nodes, policy=setup_of(cls, **kwargs))


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For routers that never answer; a busy machine may take as long for those that do."""
    monkeypatch.setattr(custom, "CHOOSE_LIMIT_S", 0.1)
    monkeypatch.setattr(custom, "BYPASS_S", 0.5)


class ByArgument(RequestRouter):
    """Goes where the first argument says."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        assert pending_request is not None
        wanted = pending_request.args[0]
        return [[r for r in candidate_replicas if r.replica_id.unique_id == wanted]]


async def test_a_request_goes_where_the_user_says(rig: Rig) -> None:
    _, router = await routed(rig, ByArgument)
    wanted = ["r2", "r0", "r1", "r2"] * 5
    answers = await asyncio.gather(*(call(router, "which", name) for name in wanted))
    assert answers == wanted
    assert router.num_waiting == 0


class OneRank(RequestRouter):
    """Leaves the choice among all of them to their queues."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        return [candidate_replicas]


async def test_within_a_rank_the_shortest_queue_gets_the_request(rig: Rig) -> None:
    nodes, router = await routed(rig, OneRank, 3)
    held = [call(router, "hold") for _ in range(9)]
    await until(lambda: sum(node.replica.ongoing for node in nodes) == 9)
    assert [node.replica.ongoing for node in nodes] == [3, 3, 3]
    for node in nodes:
        node.target.gate.set()
    assert len([await one for one in held]) == 9


async def test_a_request_whose_replica_is_full_waits_for_it_and_others_pass(rig: Rig) -> None:
    nodes, router = await routed(rig, ByHand, 2, 1)
    held = call(router, "hold", session_id="r0")
    await until(lambda: nodes[0].replica.ongoing)
    waits = call(router, "which", session_id="r0")
    assert await call(router, "which", session_id="r1") == "r1"
    assert not waits.done()
    nodes[0].target.gate.set()
    assert await waits == "r0"
    assert await held == "r0"


class ByHand(RequestRouter):
    """Goes where the session id says."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        assert pending_request is not None
        wanted = pending_request.metadata.session_id
        return [[r for r in candidate_replicas if r.replica_id.unique_id == wanted]]


class Bad(RequestRouter):
    """Fails in the way that the session id names."""

    def initialize_state(self, at_once: bool = False) -> None:
        if at_once:
            raise ValueError("no state today")
        self.gate = threading.Event()
        self.seen: list[str] = []

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Any:
        assert pending_request is not None
        how = pending_request.metadata.session_id
        self.seen.append(how)
        if how == "raises":
            raise ValueError("out of ideas")
        if how == "exits":
            raise SystemExit(3)
        if how == "hangs":
            await asyncio.sleep(60)
        if how == "blocks" and not self.gate.wait(10):
            raise TimeoutError("the test holds this router for too long")
        if how == "works on":
            self.work = asyncio.ensure_future(asyncio.sleep(60))
        if how == "nonsense":
            return "r1"
        if how.startswith("stops"):
            asyncio.get_running_loop().stop()
        if how == "stops slowly" and not self.gate.wait(10):
            raise TimeoutError("the test holds this router for too long")
        if how == "cancels":
            raise asyncio.CancelledError
        return [candidate_replicas]


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "request router of default/App" in r.message]


@pytest.mark.parametrize("how", ["raises", "exits", "nonsense", "cancels", "stops"])
async def test_whatever_a_router_does_wrong_its_requests_are_answered(
    rig: Rig, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    _, router = await routed(rig, Bad)
    caplog.set_level(logging.ERROR, "remora.router")
    for _ in range(2):
        answers = await asyncio.gather(*(call(router, "which", session_id=how) for _ in range(5)))
        assert set(answers) <= {"r0", "r1", "r2"}
    assert sum(router.custom.errors.values()) >= 1
    assert len(complaints(caplog)) == 1


@pytest.mark.parametrize("how", ["hangs", "blocks"])
async def test_requests_are_answered_when_their_router_says_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture, short_patience: None, how: str
) -> None:
    _, router = await routed(rig, Bad)
    caplog.set_level(logging.ERROR, "remora.router")
    await until(lambda: spy(router))
    for _ in range(2):
        answers = await asyncio.gather(*(call(router, "which", session_id=how) for _ in range(5)))
        assert set(answers) <= {"r0", "r1", "r2"}
    assert router.custom.errors.keys() == {"choose_replicas: TimeoutError"}
    assert len(complaints(caplog)) == 1
    spy(router).gate.set()


async def test_a_router_is_not_asked_what_nobody_wants_to_know_any_more(
    rig: Rig, short_patience: None
) -> None:
    _, router = await routed(rig, Bad)
    await until(lambda: spy(router))
    await asyncio.gather(*(call(router, "which", session_id="blocks") for _ in range(5)))
    spy(router).gate.set()
    later = threading.Event()
    router.custom._user._post(later.set)
    await until(later.is_set)
    assert spy(router).seen == ["blocks"]


async def test_requests_that_meet_the_end_of_their_router_are_answered(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    _, router = await routed(rig, Bad)
    caplog.set_level(logging.ERROR, "remora.router")
    await until(lambda: spy(router))
    first = call(router, "which", session_id="stops slowly")
    await until(lambda: spy(router).seen)
    # Nobody will ever ask the router about these: its loop has stopped, and has not ended.
    others = [call(router, "which", session_id="too late") for _ in range(5)]
    await until(lambda: len(router.custom._user._asked) == 6)
    spy(router).gate.set()
    async with asyncio.timeout(custom.CHOOSE_LIMIT_S / 2):
        assert {await one for one in (first, *others)} <= {"r0", "r1", "r2"}
    assert spy(router).seen == ["stops slowly"]
    assert router.custom.errors == {"its loop: RuntimeError": 1}
    await until(lambda: not router.custom._user._thread.is_alive())
    # What is destroyed before its end says so in the log, or in a warning, which is an error here.
    gc.collect()
    assert caplog.messages == complaints(caplog)
    assert len(caplog.messages) == 1


async def test_a_router_that_is_replaced_while_it_is_busy_leaves_nothing_behind(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, router = await routed(rig, Bad)
    await until(lambda: spy(router))
    user, old = router.custom._user, spy(router)
    await call(router, "which", session_id="works on")
    calls = [call(router, "which", session_id=how) for how in ("hangs", "blocks", "hangs", "hangs")]
    await until(lambda: "blocks" in old.seen and len(user._asked) == 4)
    router.update(rig.route(*nodes))
    assert {await one for one in calls} <= {"r0", "r1", "r2"}
    old.gate.set()
    await until(lambda: not user._thread.is_alive())
    assert user._asked == set()
    assert old.work.cancelled()
    gc.collect()
    assert caplog.messages == []


async def test_a_router_that_blocks_holds_up_nobody_else(rig: Rig) -> None:
    nodes, router = await routed(rig, Bad)
    other = await rig.routed(*nodes)
    await until(lambda: spy(router))
    slow = call(router, "which", session_id="blocks")
    await until(lambda: spy(router).seen)
    for _ in range(5):
        await call(other, "which")
    assert not slow.done()
    spy(router).gate.set()
    await slow
    assert router.custom.errors == {}


async def test_a_router_that_cannot_be_made_is_done_without(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    _, router = await routed(rig, Bad, at_once=True)
    assert await call(router, "which", session_id="") in {"r0", "r1", "r2"}
    assert "no state today" in caplog.text


class Stubborn(RequestRouter):
    """Insists on replicas that are gone, then on none, then gives in."""

    def initialize_state(self) -> None:
        self.kept: list[RunningReplica] = []
        self.asked = 0

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        self.asked += 1
        self.kept = self.kept or candidate_replicas[:1]
        if self.asked < 3:
            return [self.kept]
        return [] if self.asked < 6 else [candidate_replicas]


async def test_replicas_that_are_gone_or_none_at_all_make_a_request_wait_and_ask_again(
    rig: Rig,
) -> None:
    nodes, router = await routed(rig, Stubborn, 2)
    assert await call(router, "which") == "r0"
    router.update(rig.route(nodes[1], policy=setup_of(Stubborn)))
    assert await call(router, "which") == "r1"
    assert router.custom.errors == {}


async def test_a_waiting_request_can_be_cancelled(rig: Rig) -> None:
    _, router = await routed(rig, ByHand, 1)
    lost = call(router, "which", session_id="nowhere")
    await until(lambda: router.custom._questions)
    lost.cancel()
    with pytest.raises(RequestCancelledError):
        await lost
    await until(lambda: not router.custom._questions)


class Noted(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):
    """Writes down what it is told."""

    def initialize_state(self, greeting: str) -> None:
        self.log: list[Any] = [greeting]

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        assert pending_request is not None
        ids = self.apply_multiplex_routing(pending_request)
        assert ids <= set(self.curr_replicas)
        assert self.apply_locality_routing(pending_request) == set(self.curr_replicas)
        available = self.select_available_replicas(candidate_replicas)
        assert all(self.replica_queue_len_cache.get(r.replica_id) is not None for r in available)
        assert self.num_pending_requests >= 1
        return [[r for r in available if r.replica_id in ids]]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        self.log.append(("routed", pending_request.metadata.internal_request_id, replica_id))

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        self.log.append(("completed", internal_request_id, replica_id))

    def on_replica_actor_died(self, replica_id: Any) -> None:
        self.log.append(("died", replica_id))

    def on_replica_actor_unavailable(self, replica_id: Any) -> None:
        self.log.append(("unavailable", replica_id))


def spy(router: Router) -> Any:
    assert router.custom is not None
    return router.custom._user._router


async def test_a_router_is_told_what_becomes_of_its_requests(rig: Rig) -> None:
    nodes, router = await routed(rig, Noted, 2, greeting="hello")
    setup = router.route.policy
    nodes[1].replica.announce(models=["m"], stats={"n": 2}, metadata={"gpu": 0})
    await until(lambda: any(link.model_ids for link in router.members.links.values()))
    for _ in range(3):
        assert await call(router, "which", multiplexed_model_id="m") == "r1"
    user = spy(router)
    await until(lambda: len(user.log) == 7)
    assert user.log[0] == "hello"
    kinds = [entry[0] for entry in user.log[1:]]
    assert kinds == ["routed", "completed"] * 3
    assert {entry[2] for entry in user.log[1:]} == {nodes[1].replica.replica_id}
    assert user.log[1][1] == user.log[2][1]
    seen = user.curr_replicas[nodes[1].replica.replica_id]
    assert (seen.routing_stats, seen.replica_metadata) == ({"n": 2}, {"gpu": 0})
    assert (seen.multiplexed_model_ids, seen.max_ongoing_requests) == ({"m"}, 5)
    nodes[0].die()
    await until(lambda: len(router._open) == 1)
    router.update(rig.route(nodes[1], policy=setup))
    await until(lambda: ("died", nodes[0].replica.replica_id) in user.log)
    assert user.log[7] == ("unavailable", nodes[0].replica.replica_id)


async def test_a_replica_that_leaves_in_order_has_not_died(rig: Rig) -> None:
    nodes, router = await routed(rig, Noted, 2, greeting="hello")
    user = spy(router)
    router.update(rig.route(nodes[1], policy=router.route.policy))
    await until(lambda: len(user.curr_replicas) == 1)
    await until(lambda: len(nodes[0].replica._connections) == 0)
    assert user.log == ["hello"]


async def test_a_router_that_blocks_is_told_no_more_than_it_can_hear(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_side, "MAX_WAITING_HOOKS", 3)
    _, router = await routed(rig, Noted, 1, greeting="hello")
    user = router.custom._user
    await call(router, "which")
    await until(lambda: len(spy(router).log) == 3)
    gate = threading.Event()
    user._post(gate.wait, 5)
    for _ in range(10):
        user.tell("on_replica_actor_died", "nobody")
    gate.set()
    await until(lambda: len(spy(router).log) == 6)
    user.tell("on_replica_actor_died", "somebody")
    await until(lambda: ("died", "somebody") in spy(router).log)
    assert len(spy(router).log) == 7


@pytest.mark.parametrize(
    "cls", [PowerOfTwoChoicesRequestRouter, RoundRobinRouter, ConsistentHashRouter]
)
async def test_a_class_made_from_a_built_in_one_works_like_it(rig: Rig, cls: Any) -> None:
    class Mine(cls):  # type: ignore[misc]
        pass

    _, router = await routed(rig, Mine)
    answers = [await call(router, "which", session_id="s") for _ in range(6)]
    assert router.custom.errors == {}
    if cls is ConsistentHashRouter:
        assert len(set(answers)) == 1
    if cls is RoundRobinRouter:
        assert answers[:3] == answers[3:]
        assert len(set(answers)) == 3


async def test_a_change_of_the_router_is_followed_by_what_waits(rig: Rig) -> None:
    nodes, router = await routed(rig, ByHand, 2)
    waits = call(router, "which", session_id="nowhere")
    await until(lambda: router.custom._questions)
    thread = router.custom._user._thread
    router.update(rig.route(*nodes))
    assert await waits in {"r0", "r1"}
    assert router.custom is None
    await until(lambda: not thread.is_alive())


async def test_strict_sessions_wait_for_their_replica_and_hold_up_nobody(rig: Rig) -> None:
    nodes = [await rig.node(App, max_ongoing=1) for _ in range(2)]
    for number, node in enumerate(nodes):
        node.target.name = f"r{number}"
    setup = PolicySetup("consistent_hash", {"num_fallback_replicas": 0})
    router = await rig.routed(*nodes, policy=setup)
    home: dict[str, Node] = {}
    for number in range(20):
        name = await call(router, "which", session_id=str(number))
        home.setdefault(name, nodes[int(name[1])])
        home[str(number)] = home[name]
    one = next(str(n) for n in range(20) if home[str(n)] is nodes[0])
    other = next(str(n) for n in range(20) if home[str(n)] is nodes[1])
    held = call(router, "hold", session_id=one)
    await until(lambda: nodes[0].replica.ongoing)
    waits = [call(router, "which", session_id=one) for _ in range(3)]
    assert await call(router, "which", session_id=other) == "r1"
    assert not any(w.done() for w in waits)
    nodes[0].target.gate.set()
    assert await held == "r0"
    assert [await w for w in waits] == ["r0"] * 3


class Open(RequestRouter):
    """Notes the arguments that it sees."""

    def initialize_state(self) -> None:
        self.seen: list[Any] = []

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        assert pending_request is not None
        self.seen.append((pending_request.args, pending_request.kwargs))
        return [candidate_replicas]


@pytest.mark.parametrize("wanted", ["", "msgpack", "orjson"])
async def test_arguments_can_be_seen_however_they_travel(rig: Rig, wanted: str) -> None:
    _, router = await routed(rig, Open, 1)
    value = ((1, "two"), {"three": [3]})
    body = values.encode_plain(value, wanted) if wanted else pickle.dumps(value)
    sent = router.call(envelope("which", request_serialization=wanted), body)
    # The method does not want them, which is another matter.
    with pytest.raises(TypeError, match="three"):
        await sent
    assert spy(router).seen == [((1, "two"), {"three": [3]})]


async def test_a_slot_that_is_reserved_for_later_has_no_arguments_yet(rig: Rig) -> None:
    _, router = await routed(rig, Open, 1)
    async with reserved(router, envelope("which"), None) as selection:
        assert selection.replica_id == "default/App#r0"
    assert spy(router).seen == [((), {})]
    assert router.custom.errors == {}


async def test_a_long_queue_of_one_session_holds_up_no_other(rig: Rig) -> None:
    nodes = [await rig.node(App, max_ongoing=1) for _ in range(2)]
    for number, node in enumerate(nodes):
        node.target.name = f"r{number}"
    setup = PolicySetup("consistent_hash", {"num_fallback_replicas": 0})
    router = await rig.routed(*nodes, policy=setup)
    homes = {str(n): await call(router, "which", session_id=str(n)) for n in range(20)}
    hot = next(session for session, home in homes.items() if home == "r0")
    cold = next(session for session, home in homes.items() if home == "r1")
    held = [call(router, "hold", session_id=session) for session in (hot, cold)]
    await until(lambda: all(node.replica.ongoing for node in nodes))
    queue = [call(router, "which", session_id=hot) for _ in range(1000)]
    last = call(router, "which", session_id=cold)
    nodes[1].target.gate.set()
    # Far behind in the queue, but its replica is free.
    assert await last == "r1"
    assert router.num_waiting == 1000
    nodes[0].target.gate.set()
    assert {await waiting for waiting in queue} == {"r0"}
    assert [await one for one in held] == ["r0", "r1"]


class InOrder(RequestRouter):
    """Has no answer for the first request before there is one for the second."""

    def initialize_state(self) -> None:
        self.gate = asyncio.Event()
        self.waiting = False
        self.routed: list[str] = []

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        assert pending_request is not None
        if pending_request.metadata.session_id == "first" and not self.routed:
            self.waiting = True
            await self.gate.wait()
        return [candidate_replicas]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        self.routed.append(pending_request.metadata.session_id)
        self.gate.set()


class FirstCome(FIFOMixin, InOrder):
    """The same, where an answer is for whoever has waited longest."""


@pytest.mark.parametrize(
    ("cls", "order"), [(InOrder, ["second", "first"]), (FirstCome, ["first", "second"])]
)
async def test_an_answer_is_for_its_request_or_for_the_first_in_the_queue(
    rig: Rig, cls: type, order: list[str]
) -> None:
    _, router = await routed(rig, cls, 1)
    await asyncio.gather(*(call(router, "which", session_id=s) for s in ("first", "second")))
    user = spy(router)
    await until(lambda: len(user.routed) == 2)
    assert user.routed == order


async def test_no_answer_is_for_a_request_that_was_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom, "CHOOSE_LIMIT_S", 60.0)
    node = await rig.node(App)
    # Who gets no answer at first is not asked again while this test lasts.
    setup = replace(setup_of(FirstCome), initial_backoff_s=60.0, max_backoff_s=60.0)
    router = await rig.routed(node, policy=setup)
    given_up = call(router, "which", session_id="first")
    assert router.custom is not None
    questions = router.custom._questions
    await until(lambda: questions and spy(router).waiting)
    given_up.cancel()
    async with asyncio.timeout(5):
        await call(router, "which", session_id="second")


class Anywhere(RequestRouter):
    """Takes its time, and then any replica, gone ones as well."""

    def initialize_state(self) -> None:
        self.known: dict[str, RunningReplica] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Ranks:
        self.known.update((r.replica_id, r) for r in candidate_replicas)
        await asyncio.sleep(random.random() / 500)
        return [[replica] for replica in random.sample(list(self.known.values()), len(self.known))]


@pytest.mark.parametrize(
    "policy",
    [
        setup_of(Anywhere),
        PolicySetup("consistent_hash"),
        PolicySetup("consistent_hash", {"num_fallback_replicas": 0}),
        PolicySetup("consistent_hash", {"load_factor": 1.2}),
        PolicySetup("round_robin"),
        PolicySetup("capacity_queue"),
    ],
    ids=["custom", "hash", "strict", "bounded", "round_robin", "capacity"],
)
async def test_every_request_is_answered_while_replicas_come_and_go(
    rig: Rig, policy: PolicySetup
) -> None:
    nodes = [await rig.node(App, max_ongoing=2) for _ in range(4)]
    for node in nodes:
        node.target.name = node.replica.replica_id
    router = await rig.routed(*nodes[:3], policy=policy)
    calls = []
    for number in range(300):
        calls.append(call(router, "which", session_id=str(number % 17), idempotent=True))
        if number == 100:
            nodes[0].die()
        if number == 150:
            router.update(rig.route(*nodes[1:], policy=policy))
        if number == 200:
            router.update(rig.route(nodes[3], policy=policy))
        if number % 5 == 0:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        answers = [await one for one in calls]
    assert set(answers) <= {node.replica.replica_id for node in nodes}
    assert router.num_waiting == 0
    assert all(link.outstanding == 0 for link in router.members.links.values())
