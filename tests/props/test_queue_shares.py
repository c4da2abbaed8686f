"""Shares of a queue: never more than the limit together, none lost, and they follow demand."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from remora.core.request.queue_shares import HeldShare, Ledger, divide
from remora.core.snapshot import DeploymentRoute, ReplicaRoute
from remora.router.call import Call, UnaryCall
from remora.router.router import Router
from remora.types import DeploymentID, ReplicaID
from remora.wire.messages import CallKind, Envelope, FrameKind
from remora.wire.parcel import Body

_wishes = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40), min_size=1)


@given(st.integers(0, 60), _wishes)
def test_a_division_gives_every_place_away(limit: int, wanted: dict[str, int]) -> None:
    shares = divide(limit, wanted)
    assert shares.keys() == wanted.keys()
    assert sum(shares.values()) == limit
    assert min(shares.values()) >= 0


@given(st.integers(0, 60), _wishes)
def test_a_division_is_fair(limit: int, wanted: dict[str, int]) -> None:
    shares = divide(limit, wanted)
    for name, share in shares.items():
        if share < wanted[name]:
            # Places are whole: one more is no injustice.
            assert max(shares.values()) <= share + 1


@given(st.integers(0, 60), _wishes)
def test_modest_wishes_are_granted_in_full(limit: int, wanted: dict[str, int]) -> None:
    if sum(wanted.values()) <= limit:
        assert all(share >= wanted[name] for name, share in divide(limit, wanted).items())


def test_who_is_alone_has_everything() -> None:
    assert divide(10, {"a": 0}) == {"a": 10}
    assert divide(10, {}) == {}


# ------------------------------------------------------------- a controller and its routers

NAMES = "abcd"
APP = DeploymentID("App")
REPLICA = ReplicaRoute(ReplicaID("default/App#1"), "unix:/nowhere")
MAX_ONGOING = 3


class Replica:
    """What a router sends to: takes everything, and answers when it is told to."""

    def __init__(self) -> None:
        self.calls: deque[Call] = deque()

    def request(self, call: Call, meta: bytes, body: Body, flags: int) -> int:
        self.calls.append(call)
        return 1

    def send(self, *_: object) -> None:
        """What is sent beside requests does not matter here."""

    def answer(self, kind: FrameKind) -> None:
        if self.calls:
            self.calls.popleft().on_frame((int(kind), 0, 0, 1, b"", b""))


class Caller:
    """A real router with a replica, and a connection with messages on their way."""

    def __init__(self, limit: int) -> None:
        self.router = Router(APP, "test", random.Random(1))
        self.router.update(DeploymentRoute((REPLICA,), MAX_ONGOING, max_queued_requests=limit))
        self.replica = Replica()
        (self.link,) = self.router.links
        self.link.channel = cast(Any, self.replica)
        self.link._end_coming()
        self.router.on_link_ready(self.link)
        self.held = self.router.backlog.share
        self.calls: list[UnaryCall] = []
        self.up: deque[tuple[int, int, int]] = deque()
        self.down: deque[tuple[int, int]] = deque()
        #: The bound by which those who wait came in.
        self.most = limit
        self.say()

    @property
    def waiting(self) -> int:
        return self.router.num_waiting

    @property
    def new(self) -> int:
        """Those that wait and were never sent: a call that comes back has been let in already."""
        return sum(not call.number for call in self.router.waiting_calls())

    def say(self) -> None:
        self.up.append(self.held.next_claim(self.waiting))

    def enqueue(self) -> None:
        envelope = Envelope("1", "default", "App", "__call__", CallKind.UNARY)
        self.calls.append(self.router.call(envelope, b""))

    def give_up(self, number: int) -> None:
        for call in list(self.router.waiting_calls())[:number]:
            call.cancel()

    def apply(self) -> None:
        if self.down:
            is_first = self.held.share is None
            self.router.take_share(*self.down.popleft())
            self.note(is_first)
            self.say()

    def note(self, is_first: bool = False) -> None:
        share = self.held.share
        if share is not None:
            is_within = is_first or self.waiting <= share
            self.most = share if is_within else max(self.most, share)


class World:
    """Messages arrive in order on each connection, and at any time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.ledger = Ledger(limit)
        self.routers: dict[str, Caller] = {}

    def step(self) -> None:
        for name, message in self.ledger.step().items():
            self.routers[name].down.append(message)

    def join(self, name: str) -> None:
        if name not in self.routers:
            self.routers[name] = Caller(self.limit)

    def of(self, name: str) -> list[Caller]:
        return [self.routers[name]] if name in self.routers else []

    def enqueue(self, name: str) -> None:
        for caller in self.of(name):
            caller.enqueue()

    def fill(self, name: str) -> None:
        """Let as many wait as may, and be refused one more."""
        for _ in range(self.limit + MAX_ONGOING + 1):
            self.enqueue(name)

    def answer(self, name: str) -> None:
        for caller in self.of(name):
            caller.replica.answer(FrameKind.RESPONSE)

    def turn_away(self, name: str) -> None:
        """Other callers have made the replica full: the oldest call comes back."""
        for caller in self.of(name):
            before = {call for call in caller.calls if call.done()}
            waited = caller.waiting
            caller.replica.answer(FrameKind.REJECT)
            refused = {call for call in caller.calls if call.done()} - before
            # Nobody is refused for a smaller share, only for a queue that was full.
            assert len(refused) <= 1
            assert not refused or waited + 1 > caller.most

    def free(self, name: str) -> None:
        for caller in self.of(name):
            caller.link.on_freed(1)

    def drain(self, name: str) -> None:
        for caller in self.of(name):
            caller.give_up(1)

    def empty(self, name: str) -> None:
        for caller in self.of(name):
            caller.give_up(caller.waiting)

    def say(self, name: str) -> None:
        for caller in self.of(name):
            caller.say()

    def hear(self, name: str) -> None:
        for caller in self.of(name):
            if caller.up:
                self.ledger.claim(name, *caller.up.popleft())
                self.step()

    def sync(self, _: str) -> None:
        """Everything that is on its way arrives."""
        for each in tuple(self.routers):
            while self.routers[each].up or self.routers[each].down:
                self.hear(each)
                self.apply(each)

    def apply(self, name: str) -> None:
        for caller in self.of(name):
            caller.apply()

    def die(self, name: str) -> None:
        if self.routers.pop(name, None) is not None:
            self.ledger.leave(name)
            self.step()

    def restart(self, _: str) -> None:
        """The controller is replaced; every router comes back and says what it holds."""
        self.ledger = Ledger(self.limit, frozen=True)
        for caller in self.routers.values():
            caller.up.clear()
            caller.down.clear()
            caller.held.reset()
            caller.say()

    def thaw(self, _: str) -> None:
        if all(name in self.ledger._holders for name in self.routers):
            self.ledger.thaw()
            self.step()

    def check(self) -> None:
        """Routers that have not heard of a share yet may let too many wait until they have."""
        leased = {n: r for n, r in self.routers.items() if r.held.share is not None}
        assert sum(caller.new for caller in leased.values()) <= self.limit
        for caller in self.routers.values():
            caller.note()
            assert caller.new <= self.limit
        for name, caller in leased.items():
            holder = self.ledger._holders.get(name)
            if holder is not None:
                assert max(caller.held.share or 0, caller.new) <= max(holder.booked, holder.sent)

    def settle(self) -> None:
        for _ in range(200):
            for name, caller in self.routers.items():
                share = caller.held.share
                if share is not None and caller.waiting > share:
                    caller.give_up(caller.waiting - share)
                caller.say()
                while caller.up or caller.down:
                    self.hear(name)
                    self.apply(name)
                self.check()


def on_a_loop(work: Callable[[], None]) -> None:
    """Run it where routers can be made; it does not wait for anything."""

    async def run() -> None:
        work()

    asyncio.run(run())


OPS = (
    *("join", "enqueue", "fill", "fill", "answer", "turn_away", "turn_away", "free"),
    *("drain", "empty", "say", "hear", "apply", "sync", "die"),
)
_moves = st.lists(
    st.tuples(st.sampled_from((*OPS, "thaw", "restart")), st.sampled_from(NAMES)), max_size=80
)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 12), _moves)
def test_no_more_wait_than_may_whatever_is_lost_or_late(
    limit: int, moves: list[tuple[str, str]]
) -> None:
    def work() -> None:
        world = World(limit)
        for name in NAMES[:2]:
            world.join(name)
        world.sync("")
        for move, name in moves:
            getattr(world, move)(name)
            world.check()

    on_a_loop(work)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), _moves)
def test_no_place_is_lost_and_shares_come_to_follow_demand(
    limit: int, moves: list[tuple[str, str]]
) -> None:
    def work() -> None:
        world = World(limit)
        for move, name in moves:
            getattr(world, move)(name)
        world.settle()
        world.thaw("")
        world.settle()
        if world.routers:
            shares = {name: caller.held.share for name, caller in world.routers.items()}
            wanted = {name: caller.waiting for name, caller in world.routers.items()}
            assert sum(share or 0 for share in shares.values()) == limit
            assert shares == divide(limit, wanted)

    on_a_loop(work)


def test_places_that_are_not_used_move_to_who_needs_them() -> None:
    def work() -> None:
        world = World(10)
        for name in "ab":
            world.join(name)
        world.settle()
        assert [world.routers[name].held.share for name in "ab"] == [5, 5]
        for _ in range(MAX_ONGOING + 12):
            world.enqueue("a")
            world.settle()
        assert world.routers["a"].waiting == 10
        world.die("a")
        world.settle()
        assert world.routers["b"].held.share == 10

    on_a_loop(work)


def test_a_call_that_comes_back_costs_nobody_a_place_because_the_share_has_shrunk() -> None:
    def work() -> None:
        world = World(8)
        world.join("a")
        world.sync("")
        for _ in range(MAX_ONGOING + 6):
            world.enqueue("a")
        world.join("b")
        world.fill("b")
        world.sync("")
        world.say("b")
        world.sync("")
        first = world.routers["a"]
        assert first.held.share is not None
        assert first.held.share < first.waiting == 6
        for waiting in (7, 8, 8):
            # The third comes back to as many as there could ever be: the last one has to go.
            world.turn_away("a")
            world.check()
            assert first.waiting == waiting

    on_a_loop(work)


def test_what_came_before_a_first_share_and_is_too_much_is_refused_the_last_first() -> None:
    def work() -> None:
        world = World(6)
        world.join("a")
        world.fill("a")
        world.join("b")
        world.fill("b")
        first, second = world.routers["a"], world.routers["b"]
        assert (first.waiting, second.waiting) == (6, 6)
        world.hear("a")
        world.apply("a")
        world.hear("b")
        world.apply("b")
        assert (first.waiting, second.waiting) == (6, 0)
        world.check()

    on_a_loop(work)


def test_a_share_that_shrinks_is_given_away_only_when_it_is_free() -> None:
    ledger = Ledger(10)
    ledger.claim("a", 0, 10, 0)
    assert ledger.step() == {"a": (10, 1)}
    ledger.claim("b", 0, 10, 0)
    assert ledger.step() == {"a": (5, 2), "b": (0, 1)}
    # A claim that was on its way when the second message left.
    ledger.claim("a", 10, 10, 1)
    assert ledger.step() == {}
    # Applied, but eight still wait.
    ledger.claim("a", 8, 8, 2)
    assert ledger.step() == {"b": (2, 2)}
    ledger.claim("a", 5, 8, 2)
    assert ledger.step() == {"b": (5, 3)}


def test_a_claim_that_was_on_its_way_does_not_answer_a_later_message() -> None:
    ledger = Ledger(10)
    ledger.claim("a", 0, 5, 0)
    ledger.claim("b", 0, 5, 0)
    assert ledger.step() == {"a": (5, 1), "b": (5, 1)}
    ledger.leave("b")
    assert ledger.step() == {"a": (10, 2)}
    ledger.claim("b", 0, 10, 0)
    ledger.claim("a", 5, 0, 1)
    assert ledger.step() == {"a": (0, 3), "b": (0, 1)}
    # This one was sent before `a` heard of its ten places, which it may still fill.
    ledger.claim("a", 5, 0, 1)
    assert ledger.step() == {}
    ledger.claim("a", 10, 10, 2)
    assert ledger.step() == {"a": (5, 4)}
    assert ledger.booked == 10


def test_a_new_controller_gives_nothing_before_those_who_hold_have_said_so() -> None:
    ledger = Ledger(10, frozen=True)
    ledger.claim("b", 0, 10, 0)
    assert ledger.step() == {"b": (0, 1)}
    ledger.claim("a", 10, 3, 0)
    assert ledger.step() == {"a": (10, 1)}
    ledger.thaw()
    assert ledger.step() == {"a": (3, 2)}
    ledger.claim("a", 3, 3, 2)
    assert ledger.step() == {"b": (7, 2)}


# ------------------------------------------------------------------------------ a router's side


def test_without_a_limit_everybody_may_wait_and_nothing_is_told() -> None:
    held = HeldShare()
    assert held.may_join(10**9)
    assert not held.on_joined(10**9)
    assert not held.on_left(0)


def test_until_somebody_says_what_the_share_is_the_limit_holds() -> None:
    held = HeldShare()
    held.limit = 3
    assert [held.may_join(n) for n in (0, 2, 3)] == [True, True, False]
    held.share = 1
    assert [held.may_join(n) for n in (0, 1)] == [True, False]


def test_tells_when_the_share_gets_small_when_it_refuses_and_when_it_needs_less() -> None:
    held = HeldShare()
    held.limit, held.share = 10, 4
    assert [held.on_joined(n) for n in (1, 2, 3)] == [False, False, True]
    assert held.on_refused()
    assert held.next_claim(4) == (4, 5, 0)
    assert not held.on_left(3)
    assert held.on_left(2)
    held.share = 10
    assert not held.on_joined(9)
    assert not held.on_refused()


def test_those_who_wait_may_stay_when_the_share_shrinks_until_they_have_gone() -> None:
    held = HeldShare()
    held.limit_to(10, 0)
    held.take(10, 1, 0)
    held.take(2, 2, 5)
    assert (held.may_stay(6), held.may_stay(11), held.may_join(5)) == (True, False, False)
    held.on_left(3)
    assert held.may_stay(4)
    held.on_left(2)
    assert (held.may_stay(2), held.may_stay(3)) == (True, False)
