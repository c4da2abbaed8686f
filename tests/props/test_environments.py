"""Environments that nothing needs: which go, whatever lies there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remora.core.environments import CacheLimits, Piece, superfluous

NOW = 1_800_000_000.0
limits = st.builds(
    CacheLimits,
    grace_s=st.integers(0, 100),
    max_idle_s=st.integers(0, 300),
    max_pieces=st.integers(0, 4),
    max_bytes=st.integers(0, 1000),
)
pieces = st.lists(
    st.builds(
        Piece,
        name=st.sampled_from([f"folder-{each}" for each in "abcdefghij"]),
        num_bytes=st.integers(0, 600),
        # Also of a clock that was ahead.
        used_unix_s=st.integers(-10, 400).map(lambda ago: NOW - ago),
    ),
    max_size=10,
    unique_by=lambda piece: piece.name,
)
needed = st.frozensets(st.sampled_from([f"folder-{each}" for each in "abcdefghijxy"]))


@given(pieces, needed, limits)
def test_what_is_needed_or_was_used_just_now_stays(
    pieces: list[Piece], needed: frozenset[str], limits: CacheLimits
) -> None:
    for piece, why in superfluous(pieces, needed, NOW, limits):
        assert piece.name not in needed
        assert NOW - piece.used_unix_s >= limits.grace_s
        assert why


@given(pieces, needed, limits)
def test_of_what_is_kept_for_nobody_there_is_never_too_much(
    pieces: list[Piece], needed: frozenset[str], limits: CacheLimits
) -> None:
    gone = {piece.name for piece, _ in superfluous(pieces, needed, NOW, limits)}
    kept = [each for each in pieces if each.name not in gone and each.name not in needed]
    aged = [each for each in kept if NOW - each.used_unix_s >= limits.grace_s]
    assert all(NOW - each.used_unix_s < limits.max_idle_s for each in aged)
    if aged:
        assert len(kept) <= limits.max_pieces
        assert sum(each.num_bytes for each in kept) <= limits.max_bytes


@given(pieces, needed, limits)
def test_nothing_goes_that_there_is_room_for(
    pieces: list[Piece], needed: frozenset[str], limits: CacheLimits
) -> None:
    gone = [piece for piece, _ in superfluous(pieces, needed, NOW, limits)]
    names = {piece.name for piece in gone}
    for piece in gone:
        kept_since = [
            each
            for each in pieces
            if each.name not in names | needed and each.used_unix_s >= piece.used_unix_s
        ]
        assert (
            NOW - piece.used_unix_s >= limits.max_idle_s
            or len(kept_since) >= limits.max_pieces
            or sum(each.num_bytes for each in kept_since) + piece.num_bytes > limits.max_bytes
        )


@given(pieces, needed, limits)
def test_a_second_look_finds_nothing_more(
    pieces: list[Piece], needed: frozenset[str], limits: CacheLimits
) -> None:
    gone = {piece.name for piece, _ in superfluous(pieces, needed, NOW, limits)}
    left = [each for each in pieces if each.name not in gone]
    assert superfluous(left, needed, NOW, limits) == []


def test_what_was_not_used_for_longest_goes_first_and_says_why() -> None:
    found = superfluous(
        [Piece("a", 5, NOW - 50), Piece("b", 1, NOW - 90), Piece("c", 7, NOW - 60)],
        (),
        NOW,
        CacheLimits(grace_s=10, max_idle_s=80, max_pieces=1, max_bytes=100),
    )
    assert [(piece.name, why) for piece, why in found] == [
        ("b", "not used for 0 days"),
        ("c", "1 others were used since"),
    ]
