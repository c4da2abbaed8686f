"""Messages survive the wire, also towards an older or newer version."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remora.errors import ProtocolError
from remora.wire import codec
from remora.wire.messages import CallKind, Envelope, ErrorMeta, Hello, HttpHead, HttpStart

short = st.text(max_size=12)
seconds = st.none() | st.floats(0, 1e9, allow_nan=False)
headers = st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=3)
address = st.none() | st.tuples(short, st.integers(0, 65535))
heads = st.builds(
    HttpHead,
    short, short, st.binary(max_size=9), st.binary(max_size=9), short, headers, short, short,
    address, address, st.lists(short, max_size=2),
)  # fmt: skip
envelopes = st.builds(
    Envelope,
    short, short, short, short, st.sampled_from(CallKind), seconds, st.integers(0, 9),
    st.booleans(), short, short, short, short, short, st.booleans(), st.integers(0, 2**40),
    st.none() | heads,
)  # fmt: skip
errors = st.builds(
    ErrorMeta, short, short, short, st.integers(100, 599), st.booleans(), st.booleans(), seconds
)


@given(envelopes)
def test_envelopes_survive(envelope: Envelope) -> None:
    assert codec.decode_envelope(codec.pack(envelope)) == envelope


@given(errors)
def test_errors_survive(error: ErrorMeta) -> None:
    assert codec.decode_error(codec.pack(error)) == error


@given(st.builds(HttpStart, st.integers(100, 599), headers))
def test_response_heads_survive(start: HttpStart) -> None:
    assert codec.decode_http_start(codec.pack(start)) == start


@given(st.builds(Hello, st.integers(0, 99), short, short))
def test_greetings_survive(hello: Hello) -> None:
    assert codec.unpack(codec.pack(hello), Hello) == hello


@given(envelopes, st.lists(st.integers().filter(lambda n: abs(n) < 2**60) | short, max_size=3))
def test_fields_of_a_newer_peer_are_ignored(envelope: Envelope, more: list[object]) -> None:
    fields = msgspec.msgpack.decode(codec.pack(envelope))
    assert codec.decode_envelope(msgspec.msgpack.encode([*fields, *more])) == envelope


@given(envelopes, st.integers(5, 17))
def test_fields_that_an_older_peer_lacks_take_their_defaults(
    envelope: Envelope, known: int
) -> None:
    fields = msgspec.msgpack.decode(codec.pack(envelope))[:known]
    made = codec.decode_envelope(msgspec.msgpack.encode(fields))
    plain = Envelope("", "", "", "", CallKind.UNARY)
    for index, name in enumerate(Envelope.__struct_fields__):
        assert getattr(made, name) == getattr(envelope if index < known else plain, name)


@given(st.binary(max_size=50))
@example(b"\x95\xa1\x80")
def test_junk_is_a_protocol_error(junk: bytes) -> None:
    try:
        codec.unpack(junk, Envelope)
    except ProtocolError as error:
        assert "Envelope" in str(error)  # noqa: PT017 - junk may be valid by chance


def test_unpack_names_what_differs() -> None:
    with pytest.raises(ProtocolError, match="Hello"):
        codec.unpack(b"\xc0", Hello)
    assert codec.to_json({"a": 1}) == b'{"a":1}'
