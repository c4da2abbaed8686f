"""When agents and proxies come to nodes of a Ray cluster and leave them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.engine.ray.staffing import (
    IDLE,
    Busy,
    Order,
    Phase,
    Staff,
    came,
    decide,
    min_closing_s,
    refused,
    stayed_away,
)
from remora.errors import ConfigError

MIN_CLOSING_S = 30.0


@dataclass(frozen=True)
class Look:
    """What is seen at one look.

    Attributes:
        after_s: since the look before.
        ends: what was under way (coming, leaving) has ended; `works` says how.
    """

    after_s: float
    is_needed: bool
    busy: Busy | None
    ends: bool
    works: bool


_BUSY = st.builds(Busy, st.integers(0, 2), st.integers(0, 1))
_LOOKS = st.lists(
    st.builds(
        Look,
        st.floats(0.0, 20.0),
        st.booleans(),
        st.none() | st.just(IDLE) | _BUSY,
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@dataclass(frozen=True)
class Seen:
    """A look, the time, and what came of it."""

    look: Look
    now: float
    before: Staff
    after: Staff
    order: Order | None


def run(looks: list[Look]) -> list[Seen]:
    """Live through these looks as the shell does."""
    now, staff, seen = 1000.0, Staff(Phase.AWAY, 0.0), []
    for look in looks:
        now += look.after_s
        if look.ends and staff.phase is Phase.COMING:
            staff = came(staff, now) if look.works else stayed_away(staff, now)
        elif look.ends and staff.phase is Phase.LEAVING:
            staff = stayed_away(staff, now) if look.works else refused(staff)
        before = staff
        staff, order = decide(
            staff, now, is_needed=look.is_needed, busy=look.busy, min_closing_s=MIN_CLOSING_S
        )
        seen.append(Seen(look, now, before, staff, order))
    return seen


@given(_LOOKS)
def test_where_they_are_needed_nothing_closes_and_nothing_leaves(looks: list[Look]) -> None:
    for each in run(looks):
        if each.look.is_needed or (each.look.busy is not None and each.look.busy.num_callers):
            assert each.order not in (Order.CLOSE, Order.LEAVE)
            assert each.after.phase is not Phase.CLOSING
        if each.look.is_needed:
            # On the way out nothing can be done but to wait for the end of that.
            assert each.after.phase in (Phase.COMING, Phase.HERE, Phase.LEAVING)


@given(_LOOKS)
def test_they_leave_after_a_time_of_closing_without_any_need(looks: list[Look]) -> None:
    closing_since = None
    for each in run(looks):
        if each.order is Order.CLOSE:
            closing_since = each.now
        elif each.order is Order.OPEN:
            closing_since = None
        if each.order is Order.LEAVE:
            assert closing_since is not None
            assert each.now - closing_since >= MIN_CLOSING_S


@given(_LOOKS)
def test_what_is_under_way_or_unknown_is_not_cut_off(looks: list[Look]) -> None:
    for each in run(looks):
        if each.order is Order.LEAVE:
            assert each.look.busy == IDLE


@given(_LOOKS)
def test_orders_take_turns(looks: list[Look]) -> None:
    orders = [each.order for each in run(looks) if each.order is not None]
    may_follow = {
        # A start that fails is tried again; after an end that was refused they may stay.
        Order.START: {Order.START, Order.CLOSE},
        Order.CLOSE: {Order.OPEN, Order.LEAVE},
        Order.OPEN: {Order.CLOSE},
        Order.LEAVE: {Order.START, Order.OPEN, Order.LEAVE},
    }
    for first, second in pairwise(orders):
        assert second in may_follow[first]


@given(_LOOKS)
def test_a_node_that_nobody_needs_is_left_in_the_end(looks: list[Look]) -> None:
    quiet = [Look(MIN_CLOSING_S, False, IDLE, ends=True, works=True)] * 5
    assert run([*looks, *quiet])[-1].after.phase is Phase.AWAY


def test_an_agent_that_somebody_else_has_started_is_there() -> None:
    assert came(Staff(Phase.AWAY, 1.0), 2.0) == Staff(Phase.HERE, 2.0)
    assert came(Staff(Phase.CLOSING, 1.0), 2.0) == Staff(Phase.CLOSING, 1.0)


@pytest.mark.parametrize("wrong", ["soon", "-1", "nan", "inf"])
def test_how_long_they_close_is_read_from_the_environment(wrong: str) -> None:
    name = "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S"
    assert min_closing_s({}) == 30.0
    assert min_closing_s({name: "2.5"}) == 2.5
    with pytest.raises(ConfigError, match=f"{name}='{wrong}' is not allowed"):
        min_closing_s({name: wrong})
