"""Bodies with buffers: what is put in comes out, and junk is refused, not read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.errors import ProtocolError
from remora.wire.parcel import WITH_BUFFERS, Entry, Parcel, encode_table, join, raw, split

buffers = st.lists(st.tuples(st.binary(max_size=50), st.integers(0, 1)), max_size=4)


@given(st.binary(), buffers)
def test_joined_bodies_come_apart(data: bytes, found: list[tuple[bytes, int]]) -> None:
    body = join(data, [memoryview(b) for b, _ in found], [flag for _, flag in found])
    assert body[0] == WITH_BUFFERS
    entries, pickled, views = split(body)
    assert bytes(pickled) == data
    assert [bytes(view) for view in views if view is not None] == [b for b, _ in found]
    assert [entry.flags for entry in entries] == [flag for _, flag in found]
    assert all(view.readonly for view in views if view is not None)


@given(
    st.binary(max_size=20),
    st.lists(
        st.builds(
            Entry,
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**64 - 1),
            st.integers(1, 2**32 - 1),
            st.integers(0, 255),
        )
        | st.binary(max_size=20),
        max_size=4,
    ),
)
def test_lent_and_inline_buffers_keep_their_order(data: bytes, mixed: list[Entry | bytes]) -> None:
    given_entries = [e if isinstance(e, Entry) else Entry(len(e)) for e in mixed]
    inline = [e for e in mixed if isinstance(e, bytes)]
    entries, pickled, views = split(b"".join((encode_table(given_entries), data, *inline)))
    assert entries == given_entries
    assert bytes(pickled) == data
    expected = [None if isinstance(e, Entry) else e for e in mixed]
    assert [None if v is None else bytes(v) for v in views] == expected


@given(st.binary(max_size=120))
def test_junk_is_refused_or_adds_up(junk: bytes) -> None:
    body = b"\0" + junk
    try:
        entries, data, views = split(body)
    except ProtocolError:
        return
    inline = sum(len(view) for view in views if view is not None)
    assert len(encode_table(entries)) + len(data) + inline == len(body)


def test_a_parcel_counts_everything_in_it() -> None:
    assert len(Parcel(b"123", [b"45", memoryview(b"678")], [0, 0])) == 8


def test_a_parcel_is_no_bytes() -> None:
    assert raw(b"abc") == b"abc"
    with pytest.raises(ProtocolError, match="lent"):
        raw(Parcel(b"", [], []))
