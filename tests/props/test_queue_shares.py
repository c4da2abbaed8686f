"""Shares of a queue: never more than the limit together, none lost, and they follow demand."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from remora.core.queue_shares import HeldShare, Ledger, divide

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


class Router:
    """A router that waits for its share, and a connection with messages on their way."""

    def __init__(self, limit: int) -> None:
        self.held = HeldShare()
        self.held.limit = limit
        self.waiting = 0
        self.up: deque[tuple[int, int, int]] = deque()
        self.down: deque[tuple[int, int]] = deque()
        self.say()

    def say(self) -> None:
        self.up.append(self.held.next_claim(self.waiting))

    def enqueue(self) -> None:
        if self.held.share is not None and self.held.may_join(self.waiting):
            self.waiting += 1
        else:
            self.held.on_refused()

    def apply(self) -> None:
        if self.down:
            self.held.share, self.held.version = self.down.popleft()
            self.say()


class World:
    """Messages arrive in order on each connection, and at any time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.ledger = Ledger(limit)
        self.routers: dict[str, Router] = {}

    def step(self) -> None:
        for name, message in self.ledger.step().items():
            self.routers[name].down.append(message)

    def join(self, name: str) -> None:
        self.routers.setdefault(name, Router(self.limit))

    def enqueue(self, name: str) -> None:
        if name in self.routers:
            self.routers[name].enqueue()

    def fill(self, name: str) -> None:
        """Let as many wait as may, and be refused one more."""
        for _ in range(self.limit + 1):
            self.enqueue(name)

    def drain(self, name: str) -> None:
        if name in self.routers and self.routers[name].waiting:
            self.routers[name].waiting -= 1

    def empty(self, name: str) -> None:
        if name in self.routers:
            self.routers[name].waiting = 0

    def say(self, name: str) -> None:
        if name in self.routers:
            self.routers[name].say()

    def hear(self, name: str) -> None:
        if name in self.routers and self.routers[name].up:
            self.ledger.claim(name, *self.routers[name].up.popleft())
            self.step()

    def sync(self, _: str) -> None:
        """Everything that is on its way arrives."""
        for each in tuple(self.routers):
            while self.routers[each].up or self.routers[each].down:
                self.hear(each)
                self.apply(each)

    def apply(self, name: str) -> None:
        if name in self.routers:
            self.routers[name].apply()

    def die(self, name: str) -> None:
        if self.routers.pop(name, None) is not None:
            self.ledger.leave(name)
            self.step()

    def restart(self, _: str) -> None:
        """The controller is replaced; every router comes back and says what it holds."""
        self.ledger = Ledger(self.limit, frozen=True)
        for router in self.routers.values():
            router.up.clear()
            router.down.clear()
            router.held.reset()
            router.say()

    def thaw(self, _: str) -> None:
        if all(name in self.ledger._holders for name in self.routers):
            self.ledger.thaw()
            self.step()

    def check(self) -> None:
        assert sum(router.waiting for router in self.routers.values()) <= self.limit
        assert self.ledger.booked <= self.limit
        for name, router in self.routers.items():
            holder = self.ledger._holders.get(name)
            if holder is not None and router.held.share is not None:
                assert max(router.held.share, router.waiting) <= max(holder.booked, holder.sent)

    def settle(self) -> None:
        for _ in range(200):
            for name, router in self.routers.items():
                while router.held.share is not None and router.waiting > router.held.share:
                    router.waiting -= 1
                router.say()
                while router.up or router.down:
                    self.hear(name)
                    self.apply(name)
                self.check()


OPS = ("join", "enqueue", "fill", "fill", "drain", "empty", "say", "hear", "apply", "sync", "die")
_moves = st.lists(
    st.tuples(st.sampled_from((*OPS, "thaw", "restart")), st.sampled_from(NAMES)), max_size=80
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 12), _moves)
def test_no_more_wait_than_may_whatever_is_lost_or_late(
    limit: int, moves: list[tuple[str, str]]
) -> None:
    world = World(limit)
    for name in NAMES[:2]:
        world.join(name)
    world.sync("")
    for move, name in moves:
        getattr(world, move)(name)
        world.check()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), _moves)
def test_no_place_is_lost_and_shares_come_to_follow_demand(
    limit: int, moves: list[tuple[str, str]]
) -> None:
    world = World(limit)
    for move, name in moves:
        getattr(world, move)(name)
    world.settle()
    world.thaw("")
    world.settle()
    if world.routers:
        shares = {name: router.held.share for name, router in world.routers.items()}
        wanted = {name: router.waiting for name, router in world.routers.items()}
        assert sum(share or 0 for share in shares.values()) == limit
        assert shares == divide(limit, wanted)


def test_places_that_are_not_used_move_to_who_needs_them() -> None:
    world = World(10)
    for name in "ab":
        world.join(name)
    world.settle()
    assert [world.routers[name].held.share for name in "ab"] == [5, 5]
    for _ in range(12):
        world.enqueue("a")
        world.settle()
    assert world.routers["a"].waiting == 10
    world.die("a")
    world.settle()
    assert world.routers["b"].held.share == 10


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
