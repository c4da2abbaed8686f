"""The server's side of a WebSocket, against the client's side of the same library and by hand."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Opcode
from websockets.uri import parse_uri

from remora.proxy.websocket_session import Closed, Message, WebSocketSession, shortened
from remora.wire.messages import HttpHead

LIMIT = 100_000
KEY = (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")
HANDSHAKE = [
    (b"host", b"x"),
    (b"upgrade", b"websocket"),
    (b"connection", b"keep-alive, Upgrade"),
    (b"sec-websocket-version", b"13"),
    KEY,
]


def head(*extra: tuple[bytes, bytes]) -> HttpHead:
    return HttpHead("GET", "/", b"/", b"", "", [*HANDSHAKE, *extra])


def pair() -> tuple[WebSocketSession, ClientProtocol]:
    """A session that is open, and its client."""
    session = WebSocketSession(head(), LIMIT)
    client = ClientProtocol(parse_uri("ws://x"), max_size=None)
    client.send_request(client.connect())
    client.key = KEY[1].decode()
    client.data_to_send()
    client.receive_data(session.handshake([]).text + b"\r\n")
    client.events_received()
    assert client.handshake_exc is None
    return session, client


def frames(session: WebSocketSession, client: ClientProtocol) -> list[tuple[Opcode, bytes]]:
    """What the client sees of all that the session has to say."""
    for part in session.take():
        client.receive_data(part)
    return [(f.opcode, bytes(f.data)) for f in client.events_received()]  # type: ignore[union-attr]


def feed(session: WebSocketSession, parts: Iterable[bytes]) -> list[Message | Closed]:
    return [event for part in parts if part for event in session.feed(part)]


@given(
    st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300)), max_size=6),
    st.integers(1, 40),
    st.integers(1, 50),
)
def test_messages_are_whole_however_they_are_cut(
    messages: list[str | bytes], frame_bytes: int, read_bytes: int
) -> None:
    session, client = pair()
    sent = []
    for message in messages:
        is_text = isinstance(message, str)
        data = message.encode() if isinstance(message, str) else message
        sent.append(Message(is_text, data))
        first, *rest = [data[i : i + frame_bytes] for i in range(0, len(data), frame_bytes)] or [
            b""
        ]
        (client.send_text if is_text else client.send_binary)(first, fin=not rest)
        client.send_ping(b"between")
        for number, piece in enumerate(rest):
            client.send_continuation(piece, fin=number == len(rest) - 1)
    stream = b"".join(client.data_to_send())
    pieces = [stream[i : i + read_bytes] for i in range(0, len(stream), read_bytes)]
    assert feed(session, pieces) == sent
    assert frames(session, client) == [(Opcode.PONG, b"between")] * len(messages)


def test_fragments_without_a_byte_are_not_kept() -> None:
    session, client = pair()
    client.send_text(b"a", fin=False)
    for _ in range(1000):
        client.send_continuation(b"", fin=False)
    client.send_continuation(b"b", fin=True)
    assert feed(session, client.data_to_send()) == [Message(True, b"ab")]


@given(st.binary(max_size=60))
def test_text_that_is_no_text_ends_with_1007(data: bytes) -> None:
    session, client = pair()
    client.send_text(data)
    client.send_text(b"after")
    events = feed(session, client.data_to_send())
    try:
        data.decode()
    except UnicodeDecodeError:
        assert events == [Closed(1007, "", failed=True)]
        assert frames(session, client)[0][0] is Opcode.CLOSE
        assert client.close_rcvd is not None
        assert client.close_rcvd.code == CloseCode.INVALID_DATA
    else:
        assert events == [Message(True, data), Message(True, b"after")]


def test_a_message_above_the_limit_ends_with_1009() -> None:
    session, client = pair()
    client.send_binary(bytes(LIMIT))
    client.send_binary(bytes(LIMIT + 1))
    first, second = feed(session, client.data_to_send())
    assert first == Message(False, bytes(LIMIT))
    assert isinstance(second, Closed)
    assert (second.code, second.failed) == (1009, True)


@given(st.binary(min_size=1, max_size=400))
def test_no_bytes_of_a_client_raise(data: bytes) -> None:
    session, _ = pair()
    session.feed(data)
    session.send(True, b"x")
    session.ping()
    session.close(1000, "")
    session.take()


def test_the_clients_close_is_the_last_event() -> None:
    session, client = pair()
    client.send_text(b"last")
    client.send_close(4000, "bye")
    data = client.data_to_send()
    assert feed(session, data) == [Message(True, b"last"), Closed(4000, "bye", failed=False)]
    assert not session.is_open
    session.send(True, b"too late")
    assert frames(session, client) == [(Opcode.CLOSE, b"\x0f\xa0bye")]


@pytest.mark.parametrize("code", [1000, 1012, 4999])
def test_a_close_carries_its_code(code: int) -> None:
    session, client = pair()
    session.close(code, "é" * 100)
    frames(session, client)
    assert client.close_rcvd is not None
    assert (client.close_rcvd.code, client.close_rcvd.reason) == (code, "é" * 61)


@pytest.mark.parametrize("code", [0, 1005, 1006, 70_000])
def test_a_code_that_may_not_travel_becomes_1011(code: int) -> None:
    session, client = pair()
    session.close(code, "")
    frames(session, client)
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == 1011


@given(st.text())
def test_a_shortened_reason_fits_and_begins_as_it_did(reason: str) -> None:
    short = shortened(reason)
    assert len(short.encode()) <= 123
    assert reason.encode("utf-8", "replace").decode().startswith(short)
    assert short == reason or len(short.encode()) >= 120 or "?" in short


def test_only_the_last_pong_is_kept_for_one_who_does_not_read() -> None:
    session, client = pair()
    for number in range(3):
        client.send_ping(b"%d" % number)
    assert feed(session, client.data_to_send()) == []
    (pong,) = session.take(last_only=True)
    client.receive_data(pong)
    assert [bytes(f.data) for f in client.events_received()] == [b"2"]  # type: ignore[union-attr]


def test_compression_is_agreed_on_and_works() -> None:
    offer = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")
    session = WebSocketSession(head(offer), LIMIT)
    lines = session.handshake([]).text
    assert b"Sec-WebSocket-Extensions: permessage-deflate; " in lines
    session.send(True, b"a" * 10_000)
    (data,) = session.take()
    assert len(data) < 100


def test_what_unpacks_to_much_is_unpacked_bit_by_bit() -> None:
    offer = (b"sec-websocket-extensions", b"permessage-deflate; client_no_context_takeover")
    session = WebSocketSession(head(offer), 16 * 1024 * 1024)
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = packer.compress(bytes(4_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    frame = b"\xc2\xfe" + (len(packed) - 4).to_bytes(2, "big") + bytes(4) + packed[:-4]
    events = session.feed(frame * 40, 65536)
    total = 0
    while True:
        # A slice of 4 KiB completes two of these at most.
        assert sum(len(event.data) for event in events if isinstance(event, Message)) <= 8_000_000
        total += len(events)
        if not session.has_more:
            break
        events = session.feed(b"", 65536)
    assert total == 40


def test_nothing_is_unpacked_where_there_is_no_room() -> None:
    session, client = pair()
    client.send_text(b"one")
    (data,) = client.data_to_send()
    assert session.feed(data, -1) == []
    assert session.has_more
    assert session.feed(b"", 0) == [Message(True, b"one")]


def test_headers_of_the_handshake_itself_are_not_the_applications_to_set() -> None:
    session = WebSocketSession(head(), LIMIT)
    mine = [(b"Upgrade", b"h2c"), (b"sec-websocket-accept", b"no"), (b"x-a", b"b")]
    lines = session.handshake(mine).text.splitlines(keepends=True)
    assert [line for line in lines if line.lower().startswith((b"upgrade", b"sec-", b"x-"))] == [
        b"Upgrade: websocket\r\n",
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
        b"x-a: b\r\n",
    ]
    with pytest.raises(ValueError, match="control character"):
        session.handshake([(b"x-a", b"b\r\nc: d")])


def test_subprotocols_are_those_the_client_offers_in_its_order() -> None:
    offers = [(b"sec-websocket-protocol", b"b, a"), (b"sec-websocket-protocol", b"c")]
    assert WebSocketSession(head(*offers), LIMIT).subprotocols == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        ((b"sec-websocket-version", b"8"), 400),
        ((b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="), 400),
        ((b"content-length", b"3"), 400),
        ((b"transfer-encoding", b"chunked"), 400),
        ((b"sec-websocket-protocol", b",,;"), 400),
    ],
)
def test_what_is_no_handshake_is_refused(extra: tuple[bytes, bytes], status: int) -> None:
    refusal = WebSocketSession(head(extra), LIMIT).refusal
    assert refusal is not None
    assert refusal.status == status
