"""Any chunking of the same bytes gives the same frames, and nothing else gets through."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.errors import ProtocolError
from remora.wire.framing import (
    HEADER_BYTES,
    LARGE_BODY_BYTES,
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    FrameDecoder,
    RawFrame,
    encode,
    encode_head,
)
from remora.wire.messages import FrameKind
from remora.wire.parcel import raw

frames = st.builds(
    lambda kind, flags, load, number, meta, body: (int(kind), flags, load, number, meta, body),
    st.sampled_from(FrameKind),
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=60),
    st.one_of(st.binary(max_size=300), st.just(bytes(LARGE_BODY_BYTES + 1))),
)


def bytes_of(frame: RawFrame) -> bytes:
    kind, flags, load, number, meta, body = frame
    return encode(kind, number, meta, raw(body), flags, load)


def trusting() -> FrameDecoder:
    decoder = FrameDecoder()
    assert decoder.trust() == []
    return decoder


@given(st.lists(frames, max_size=6), st.data())
def test_any_chunking_gives_the_same_frames(sent: list[RawFrame], data: st.DataObject) -> None:
    stream = b"".join(map(bytes_of, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = trusting()
    got: list[RawFrame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == sent


@given(st.lists(frames, max_size=3).map(lambda some: [f for f in some if len(f[5]) < 400]))
def test_byte_by_byte(sent: list[RawFrame]) -> None:
    decoder = trusting()
    got = [f for byte in b"".join(map(bytes_of, sent)) for f in decoder.feed(bytes([byte]))]
    assert got == sent


@given(frames)
def test_head_and_body_apart_are_the_same_bytes(frame: RawFrame) -> None:
    kind, flags, load, number, meta, body = frame
    assert encode_head(kind, number, meta, len(body), flags, load) + bytes(raw(body)) == bytes_of(
        frame
    )


@given(st.binary(max_size=200), st.lists(frames, min_size=1, max_size=3), st.integers(0, 300))
def test_only_the_greeting_is_read_before_trust(
    hello: bytes, rest: list[RawFrame], cut: int
) -> None:
    greeting = encode(FrameKind.HELLO, 0, hello)
    behind = b"".join(map(bytes_of, rest))
    decoder = FrameDecoder()
    first = decoder.feed(greeting + behind[:cut])
    assert first == [(1, 0, 0, 0, hello, b"")]
    assert decoder.trust() + decoder.feed(behind[cut:]) == rest


@given(st.binary(min_size=HEADER_BYTES, max_size=100))
def test_junk_is_refused_or_waits_for_more_but_never_breaks(junk: bytes) -> None:
    try:
        decoder = FrameDecoder()
        for frame in decoder.feed(junk):
            assert frame[0] in set(FrameKind)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("size", "meta", "kind"),
    [(MAX_HELLO_BYTES + 1, 0, 1), (12, 1, 1), (11, 0, 1), (0, 0, 1), (12, 0, 0), (12, 0, 99)],
)
def test_bad_headers_are_refused_before_memory_is_spent(size: int, meta: int, kind: int) -> None:
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(struct.pack("<IIBBHI", size, meta, kind, 0, 0, 0))


def test_a_trusted_peer_is_bounded_as_well() -> None:
    with pytest.raises(ProtocolError):
        trusting().feed(struct.pack("<IIBBHI", MAX_FRAME_BYTES + 1, 0, 1, 0, 0, 0))
    with pytest.raises(ProtocolError, match="stream it"):
        encode_head(FrameKind.ITEM, 1, b"", MAX_FRAME_BYTES)
