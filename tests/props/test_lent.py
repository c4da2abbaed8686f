"""The books of what is lent: nothing is lent unasked, and all that is lent is returned or forfeited."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.lent import Lent, Place, Way

places = st.tuples(st.integers(1, 2), st.integers(1, 3))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), places, st.booleans()),
        st.tuples(st.just("return"), places, st.booleans()),
        st.tuples(st.just("answer"), places, st.booleans()),
        st.tuples(st.just("withdraw"), places, st.booleans()),
    ),
    max_size=40,
)


def run(books: Lent[str], todo: list[tuple[str, Place, bool]]) -> Counter[Place]:
    """Do what a connection does; returns what is lent, and how often."""
    out: Counter[Place] = Counter()
    asked: set[int] = set()
    agreed: dict[int, bool] = {}
    gone: set[int] = set()
    for step, place, flag in todo:
        segment = place[0]
        if step == "send":
            way = books.way(place, flag)
            if way is Way.ASK:
                assert segment not in asked | gone
                asked.add(segment)
                books.ask(segment)
            elif way is Way.LEND:
                assert agreed.get(segment)
                assert segment not in gone
                assert not (flag and out[place])
                out[place] += 1
                books.lend(place, f"block {place}")
            else:
                assert segment in gone or not agreed.get(segment) or (flag and out[place])
        elif step == "return" and out[place]:
            out[place] -= 1
            assert books.take_back(place) == f"block {place}"
        elif step == "return":
            with pytest.raises(KeyError):
                books.take_back(place)
        elif step == "answer" and segment in asked and segment not in agreed:
            agreed[segment] = flag
            books.answer(segment, flag)
        elif step == "withdraw":
            gone.add(segment)
            assert books.withdraw(segment)
    return +out


@given(steps)
def test_only_what_the_other_side_can_read_is_lent_and_what_it_may_write_to_once(
    todo: list[tuple[str, Place, bool]],
) -> None:
    books: Lent[str] = Lent()
    out = run(books, todo)
    assert {place: count for place, (_, count) in books.lent.items()} == out


@given(steps)
def test_what_was_not_returned_is_forfeited_with_the_connection(
    todo: list[tuple[str, Place, bool]],
) -> None:
    books: Lent[str] = Lent()
    out = run(books, todo)
    assert sorted(books.lose()) == sorted(f"block {place}" for place in out)
    assert books.lent == {}
    assert books.way((1, 1), writable=False) is Way.COPY
    assert not books.withdraw(1)


def test_a_late_answer_does_not_revive_what_was_withdrawn() -> None:
    books: Lent[str] = Lent()
    books.ask(1)
    books.withdraw(1)
    books.answer(1, readable=True)
    assert books.way((1, 1), writable=False) is Way.COPY
