"""A cache of models keeps its limits, its promises and its order, whatever is asked of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from remora.core.request.model_cache import (
    Action,
    Give,
    Limits,
    Load,
    ModelCache,
    Refuse,
    StopLoading,
    Ticket,
    Unload,
)

MODELS = "abcdef"
USERS = (1, 2, 3, 4, 5)
SIZES = {"a": 1, "b": 2, "c": 3, "d": 1, "e": 4, "f": 2}


class Shell(RuleBasedStateMachine):
    """Does what the cache says, in any order and with any delay."""

    limits: Limits

    def __init__(self) -> None:
        super().__init__()
        self.cache = ModelCache(self.limits)
        self.loading: set[str] = set()
        self.stopping: set[str] = set()
        self.unloading: set[str] = set()
        self.here: set[str] = set()
        self.waiting: dict[Ticket, Hashable] = {}
        self.uses: dict[Hashable, set[str]] = {}

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Load(model_id):
                    assert model_id not in self.loading | self.unloading | self.here
                    self.loading.add(model_id)
                case StopLoading(model_id):
                    assert model_id in self.loading
                    assert not [t for t in self.waiting if t.model_id == model_id]
                    self.stopping.add(model_id)
                case Unload(model_id):
                    assert model_id in self.here
                    assert model_id not in self.cache.pinned
                    blocked = {ticket.user for ticket in self.waiting}
                    users = {u for u, models in self.uses.items() if model_id in models}
                    assert users <= blocked
                    if users:
                        self.assert_nobody_gets_on(blocked)
                    self.here.remove(model_id)
                    self.unloading.add(model_id)
                    for models in self.uses.values():
                        models.discard(model_id)
                case Give(ticket):
                    self.given(ticket)
                case Refuse(ticket, reason):
                    assert reason
                    del self.waiting[ticket]

    def assert_nobody_gets_on(self, blocked: set[Hashable]) -> None:
        """A used model goes only if nothing else ever could."""
        assert not self.loading - self.stopping - self.cache.pinned
        for model_id in self.here - self.cache.pinned:
            users = {u for u, models in self.uses.items() if model_id in models}
            assert users
            assert users <= blocked

    def given(self, ticket: Ticket) -> None:
        assert ticket.model_id in self.here
        del self.waiting[ticket]
        if ticket.user is not None:
            self.uses.setdefault(ticket.user, set()).add(ticket.model_id)

    @rule(model_id=st.sampled_from(MODELS), user=st.sampled_from(USERS) | st.none())
    def ask(self, model_id: str, user: int | None) -> None:
        if self.cache.take(model_id, user):
            assert model_id in self.here
            if user is not None:
                self.uses.setdefault(user, set()).add(model_id)
            return
        ticket, actions = self.cache.ask(model_id, user, SIZES[model_id])
        self.waiting[ticket] = user
        self.do(actions)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(list(self.waiting)))
        del self.waiting[ticket]
        self.do(self.cache.give_up(ticket))
        assert self.cache.give_up(ticket) == []

    @rule(user=st.sampled_from(USERS))
    def release(self, user: int) -> None:
        # A request that ends waits for nothing any more.
        for ticket in [t for t, u in self.waiting.items() if u == user]:
            del self.waiting[ticket]
            self.do(self.cache.give_up(ticket))
        self.uses.pop(user, None)
        self.do(self.cache.release(user))

    @rule(user=st.sampled_from(USERS))
    def release_what_left_work_behind(self, user: int) -> None:
        """The request ends, a task of its own goes on waiting: that will not end for the cache."""
        for ticket in [t for t, u in self.waiting.items() if u == user]:
            self.waiting[ticket] = None
        self.uses.pop(user, None)
        self.do(self.cache.release(user))

    @rule(model_id=st.sampled_from(MODELS))
    def pin(self, model_id: str) -> None:
        limit = self.limits.max_models
        if limit is None or len(self.cache.pinned | {model_id}) <= limit:
            self.do(self.cache.pin(model_id))
        else:
            with pytest.raises(ValueError, match="cannot be pinned"):
                self.cache.pin(model_id)

    @rule(model_id=st.sampled_from(MODELS))
    def unpin(self, model_id: str) -> None:
        self.do(self.cache.unpin(model_id))

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), fails=st.booleans())
    def end_load(self, data: st.DataObject, fails: bool) -> None:
        model_id = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.discard(model_id)
        self.stopping.discard(model_id)
        if fails:
            tickets, actions = self.cache.on_load_failed(model_id)
            for ticket in tickets:
                del self.waiting[ticket]
            self.do(actions)
            return
        self.here.add(model_id)
        self.do(self.cache.on_loaded(model_id))

    @precondition(lambda self: self.unloading)
    @rule(data=st.data())
    def end_unloading(self, data: st.DataObject) -> None:
        model_id = data.draw(st.sampled_from(sorted(self.unloading)))
        self.unloading.remove(model_id)
        self.do(self.cache.on_unloaded(model_id))

    @invariant()
    def limits_hold(self) -> None:
        places = self.loading | self.unloading | self.here
        limits = self.limits
        assert len(places) == self.cache.num_places
        assert limits.max_models is None or len(places) <= limits.max_models
        assert limits.max_bytes is None or sum(map(SIZES.get, places)) <= limits.max_bytes  # type: ignore[arg-type]
        started = len(self.loading) + len(self.unloading)
        assert started <= limits.max_loads
        assert set(self.cache.loaded) == self.here

    @invariant()
    def held_is_what_is_here_or_coming(self) -> None:
        wanted = {ticket.model_id for ticket in self.waiting}
        assert set(self.cache.held) == (wanted | self.here | (self.loading - self.stopping)), "held"

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Whoever waits does so for a load, an unloading or a request that gets on."""
        if not self.waiting or self.loading or self.unloading:
            return
        blocked = set(self.waiting.values())
        assert any(
            models & (self.here - self.cache.pinned) and user not in blocked
            for user, models in self.uses.items()
        )

    def teardown(self) -> None:
        """When everything ends well, nobody is left waiting."""
        for _ in range(200):
            if self.loading:
                model_id = min(self.loading)
                self.loading.discard(model_id)
                self.here.add(model_id)
                self.do(self.cache.on_loaded(model_id))
            elif self.unloading:
                self.do(self.cache.on_unloaded(self.unloading.pop()))
            elif self.uses:
                user = next(iter(self.uses))
                if user in set(self.waiting.values()):
                    self.uses = {**self.uses, user: self.uses.pop(user)}
                    free = [u for u in self.uses if u not in set(self.waiting.values())]
                    if not free:
                        break
                    user = free[0]
                self.uses.pop(user)
                self.do(self.cache.release(user))
        assert not self.waiting
        assert self.cache.num_waiting == 0


def _machine(limits: Limits) -> Any:
    case = type("Machine", (Shell,), {"limits": limits}).TestCase  # type: ignore[attr-defined]
    case.settings = settings(max_examples=80, stateful_step_count=40)
    return case


TestOnePlace = _machine(Limits(max_models=1))
TestTwoPlaces = _machine(Limits(max_models=2))
TestThreePlacesAndTwoLoads = _machine(Limits(max_models=3, max_loads=2))
TestBytes = _machine(Limits(max_models=None, max_bytes=5, max_loads=2))


@given(st.lists(st.sampled_from(MODELS), max_size=60), st.integers(1, 4))
def test_requests_one_after_the_other_see_a_plain_lru_cache(asked: list[str], limit: int) -> None:
    cache = ModelCache(Limits(max_models=limit))
    expected: OrderedDict[str, None] = OrderedDict()
    for number, model_id in enumerate(asked):
        hit = model_id in expected
        expected[model_id] = None
        expected.move_to_end(model_id)
        evicted = expected.popitem(last=False)[0] if len(expected) > limit else None
        assert cache.take(model_id, number) is hit
        if not hit:
            _, actions = cache.ask(model_id, number)
            if evicted is not None:
                assert actions == [Unload(evicted)]
                actions = cache.on_unloaded(evicted)
            assert actions == [Load(model_id)]
            assert [type(a) for a in cache.on_loaded(model_id)] == [Give]
        assert cache.loaded == list(expected)
        assert cache.release(number) == []


@given(st.integers(1, 20))
def test_a_missing_model_is_loaded_once_for_all_who_ask(count: int) -> None:
    cache = ModelCache(Limits())
    asked = [cache.ask("a", user) for user in range(count)]
    assert [actions for _, actions in asked] == [[Load("a")]] + [[]] * (count - 1)
    assert cache.on_loaded("a") == [Give(ticket) for ticket, _ in asked]


def test_a_failed_load_fails_all_who_wait_and_is_not_kept() -> None:
    cache = ModelCache(Limits())
    tickets = [cache.ask("a", user)[0] for user in range(3)]
    assert cache.on_load_failed("a") == (tickets, [])
    assert cache.num_places == 0
    assert cache.ask("a", 9)[1] == [Load("a")]


def test_a_used_model_stays_and_the_queue_is_served_in_order() -> None:
    cache = ModelCache(Limits(max_models=1))
    cache.ask("a", 1)
    cache.on_loaded("a")
    b, actions = cache.ask("b", 2)
    assert actions == []
    c, actions = cache.ask("c", 3)
    assert actions == []
    assert cache.release(1) == [Unload("a")]
    assert cache.on_unloaded("a") == [Load("b")]
    assert cache.on_loaded("b") == [Give(b)]
    assert cache.release(2) == [Unload("b")]
    assert cache.on_unloaded("b") == [Load("c")]
    assert cache.on_loaded("c") == [Give(c)]


def test_requests_for_a_used_model_cannot_keep_others_out_for_ever() -> None:
    cache = ModelCache(Limits(max_models=1))
    cache.ask("a", 1)
    cache.on_loaded("a")
    cache.ask("b", 2)
    assert not cache.take("a", 3)  # it closes: 3 has to wait behind 2
    assert cache.take("a", 1)  # its user may go on with it
    _, actions = cache.ask("a", 3)
    assert actions == []
    assert cache.release(1) == [Unload("a")]
    assert cache.on_unloaded("a") == [Load("b")]


def test_a_model_that_need_not_close_any_more_is_given_at_once() -> None:
    cache = ModelCache(Limits(max_models=2))
    for user, model_id in enumerate("ab"):
        cache.ask(model_id, user)
        cache.on_loaded(model_id)
    cache.ask("c", 7)
    again, _ = cache.ask("a", 8)
    assert cache.release(1) == [Unload("b"), Give(again)]


def test_a_request_that_needs_more_models_than_fit_lets_its_own_go() -> None:
    cache = ModelCache(Limits(max_models=1))
    cache.ask("a", 1)
    cache.on_loaded("a")
    b, actions = cache.ask("b", 1)
    assert actions == [Unload("a")]
    assert cache.on_unloaded("a") == [Load("b")]
    assert cache.on_loaded("b") == [Give(b)]


def test_two_requests_that_wait_for_each_others_models_get_on() -> None:
    cache = ModelCache(Limits(max_models=2))
    for user, model_id in ((1, "a"), (2, "b")):
        cache.ask(model_id, user)
        cache.on_loaded(model_id)
    _, actions = cache.ask("c", 1)
    assert actions == []  # 2 may end yet
    _, actions = cache.ask("d", 2)
    assert actions == [Unload("a")]  # the one who is next gives up its own


def test_what_only_pinned_models_could_make_room_for_is_refused() -> None:
    cache = ModelCache(Limits(max_models=1))
    cache.pin("a")
    cache.ask("a", None)
    cache.on_loaded("a")
    ticket, [refusal] = cache.ask("b", 1)
    assert isinstance(refusal, Refuse)
    assert refusal.ticket is ticket
    assert refusal.reason == "all 1 places (max_num_models_per_replica) hold pinned models"
    cache.unpin("a")
    assert cache.ask("b", 1)[1] == [Unload("a")]


def test_a_load_that_nobody_waits_for_is_cancelled_and_its_place_free_when_it_ends() -> None:
    cache = ModelCache(Limits(max_models=1))
    one, _ = cache.ask("a", 1)
    two, _ = cache.ask("a", 2)
    assert cache.give_up(one) == []
    assert cache.give_up(two) == [StopLoading("a")]
    assert cache.ask("a", 3)[1] == []  # first the old load has to end
    assert cache.on_load_failed("a") == ([], [Load("a")])


def test_what_a_user_has_left_behind_gets_its_model_and_does_not_keep_it() -> None:
    cache = ModelCache(Limits(max_models=1))
    left_behind, _ = cache.ask("a", 1)
    assert cache.release(1) == []
    assert cache.on_loaded("a") == [Give(left_behind)]
    assert cache.ask("b", 2)[1] == [Unload("a")]


def test_a_cache_that_has_stopped_cancels_what_loads_and_loads_nothing_more() -> None:
    cache = ModelCache(Limits(max_models=1))
    cache.ask("a", 1)
    waiting, _ = cache.ask("b", 2)
    assert cache.stop() == [StopLoading("a")]
    assert cache.on_load_failed("a") == ([], [])
    assert cache.give_up(waiting) == []
    assert cache.num_places == 0


def test_a_load_that_ends_well_in_spite_of_its_cancellation_is_kept() -> None:
    cache = ModelCache(Limits())
    ticket, _ = cache.ask("a", 1)
    cache.give_up(ticket)
    assert cache.on_loaded("a") == []
    assert cache.take("a", 2)
