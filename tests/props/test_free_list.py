"""Free places: blocks never overlap, nothing is lost, and first fit stays at the bottom."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.free_list import FreeList

GRAIN = 16
START, END = 2 * GRAIN, 40 * GRAIN

#: A size to take, or which of the blocks that are held is given back.
steps = st.lists(st.tuples(st.booleans(), st.integers(1, 8 * GRAIN)), max_size=60)


def run(free: FreeList, todo: list[tuple[bool, int]]) -> dict[int, int]:
    """Take and give back; returns the blocks that are held, by place."""
    held: dict[int, int] = {}
    for is_take, number in todo:
        if is_take:
            place = free.take(number)
            if place is not None:
                held[place] = number
        elif held:
            place = sorted(held)[number % len(held)]
            free.give(place, held.pop(place))
    return held


@given(steps)
def test_blocks_are_inside_and_never_overlap(todo: list[tuple[bool, int]]) -> None:
    free = FreeList(START, END, GRAIN)
    held = run(free, todo)
    taken = [(place, place + free.rounded(size)) for place, size in held.items()]
    edges = sorted([*taken, *free.ranges()])
    # Used and free places together are the whole, without gap or overlap.
    assert [start for start, _ in edges] == [START, *(end for _, end in edges[:-1])]
    assert edges[-1][1] == END
    assert free.used_end == max((end for _, end in taken), default=START)


@given(steps)
def test_neighbours_are_joined(todo: list[tuple[bool, int]]) -> None:
    free = FreeList(START, END, GRAIN)
    run(free, todo)
    ranges = free.ranges()
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(ranges))


@given(steps)
def test_all_given_back_is_one_free_range(todo: list[tuple[bool, int]]) -> None:
    free = FreeList(START, END, GRAIN)
    for place, size in run(free, todo).items():
        free.give(place, size)
    assert free.ranges() == [(START, END)]


@given(steps, st.integers(1, END))
def test_a_block_is_refused_only_when_no_range_is_large_enough(
    todo: list[tuple[bool, int]], size: int
) -> None:
    free = FreeList(START, END, GRAIN)
    run(free, todo)
    fitting = [start for start, end in free.ranges() if end - start >= size]
    assert free.take(size) == min(fitting, default=None)


@given(st.integers(1, 10**9))
def test_less_than_a_grain_is_wasted(size: int) -> None:
    assert 0 <= FreeList(START, END, GRAIN).rounded(size) - size < GRAIN


@given(steps, st.integers(0, END // GRAIN), st.integers(1, END))
def test_what_was_not_taken_cannot_be_given(
    todo: list[tuple[bool, int]], grains: int, size: int
) -> None:
    free = FreeList(START, END, GRAIN)
    run(free, todo)
    start, end = grains * GRAIN, grains * GRAIN + free.rounded(size)
    before = free.ranges()
    if start < START or end > END or any(a < end and start < b for a, b in before):
        with pytest.raises(ValueError, match="was not taken"):
            free.give(start, size)
        assert free.ranges() == before
