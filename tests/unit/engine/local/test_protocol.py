"""JSON lines come out the same however the bytes were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.engine.local.protocol import MAX_LINE_BYTES, LineBuffer, LineError, Message, encode

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5)


@pytest.mark.slow
@given(messages, st.lists(st.integers(min_value=0, max_value=400), max_size=6))
def test_any_chunking_gives_the_same_messages(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(map(encode, sent))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    buffer = LineBuffer()
    received = [
        message
        for start, end in itertools.pairwise(places)
        for message in buffer.feed(data[start:end])
    ]
    assert received == sent


@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_a_line_error(junk: bytes) -> None:
    try:
        received = LineBuffer().feed(junk + b"\n")
    except LineError:
        return
    assert all(isinstance(message, dict) for message in received)


@pytest.mark.parametrize("junk", [b"[]\n", b"1\n", b"{\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_what_is_no_json_object_is_refused(junk: bytes) -> None:
    with pytest.raises(LineError):
        LineBuffer().feed(junk)


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    buffer = LineBuffer()
    chunk = b"x" * (MAX_LINE_BYTES // 2)
    buffer.feed(chunk)
    buffer.feed(chunk)
    with pytest.raises(LineError, match="longer than"):
        buffer.feed(b"x")
