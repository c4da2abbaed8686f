"""The server's side of RFC 6455 for one client: bytes in, whole messages out, and back.

The framing, masking, compression and closing rules are those of the `websockets` library; what is
added is what a server behind a proxy needs: the handshake of a head that was parsed already,
whole messages, and text that is checked before anybody else sees it.

Rules: no input or output, no clock. Kept at most are a message of `max_message_bytes` that is not
whole, what `feed` was given and has not unpacked, and the messages of one call of it: those beyond
`max_bytes` that were made of one slice, which a few KiB can unpack to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple, cast

from websockets.datastructures import Headers
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.headers import parse_subprotocol
from websockets.http11 import Request as HandshakeRequest
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from remora.proxy import head as heads
from remora.proxy import respond
from remora.proxy.respond import Response
from remora.wire.messages import HttpHead

_log = logging.getLogger("remora.proxy.websocket")

#: A close frame has 125 bytes, two of them for the code.
_MAX_REASON_BYTES = 123
NO_CODE = 1005
INVALID_DATA = 1007
INTERNAL_ERROR = 1011
#: Small windows: 64 KiB for each connection instead of 300, for nearly the same compression.
_DEFLATE = ServerPerMessageDeflateFactory(
    server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
)
#: Compressed bytes are unpacked so many at a time, because they can become a thousand times as many.
_SLICE_BYTES = 4096
_UNBOUNDED = 1 << 62
#: Response headers of a handshake that only the handshake itself may set.
_OWN_HEADERS = (b"upgrade: ", b"sec-websocket-accept: ", b"sec-websocket-extensions: ")


class Message(NamedTuple):
    """One message of the client."""

    is_text: bool
    data: bytes


class Closed(NamedTuple):
    """The client's last word, or the rule that it broke.

    Attributes:
        code: of the client's close frame; 1005: it had none; or of the one that it was sent.
        reason: beside it.
        failed: the client broke a rule: it was told so, and is not listened to any more.
    """

    code: int
    reason: str
    failed: bool


class WebSocketSession:
    """One WebSocket, from its handshake to its last frame.

    Attributes:
        refusal: why the handshake fails; None: it may be accepted.
        subprotocols: that the client offers, in its order.
    """

    def __init__(self, head: HttpHead, max_message_bytes: int) -> None:
        headers = Headers(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers
        )
        self._protocol = ServerProtocol(
            extensions=[_DEFLATE], state=OPEN, max_size=max_message_bytes, logger=_log
        )
        request = HandshakeRequest(
            head.raw_path.decode("latin-1"),
            headers,
            method=head.method,
            protocol=f"HTTP/{head.http_version}",
        )
        self.subprotocols: list[str] = []
        self.refusal: Response | None = None
        self._partial = bytearray()
        self._is_text = False
        #: Came already, and is not unpacked.
        self._rest = b""
        self._slice_bytes = _UNBOUNDED
        answer = self._protocol.accept(request)
        if answer.status_code != 101:
            extra = [
                (name.lower().encode(), value.encode())
                for name, value in answer.headers.raw_items()
                if name.lower() in ("allow", "upgrade")
            ]
            self.refusal = respond.text(answer.status_code, bytes(answer.body or b""), *extra)
            return
        self._handshake = [
            (name, answer.headers[name])
            for name in ("Upgrade", "Connection", "Sec-WebSocket-Accept")
        ]
        if "Sec-WebSocket-Extensions" in answer.headers:
            extensions = answer.headers["Sec-WebSocket-Extensions"]
            self._handshake.append(("Sec-WebSocket-Extensions", extensions))
            self._slice_bytes = _SLICE_BYTES
        if "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0":
            # Its body could not be told from the first message.
            self.refusal = respond.text(400, "The handshake of a WebSocket has no body.")
        # Readable: the handshake is accepted.
        for value in headers.get_all("Sec-WebSocket-Protocol"):
            self.subprotocols += parse_subprotocol(value)

    @property
    def is_open(self) -> bool:
        """Messages may be sent."""
        return self._protocol.state is OPEN

    def handshake(self, headers: list[tuple[bytes, bytes]]) -> heads.Head:
        """The head of the answer that opens the WebSocket, with the application's `headers`.

        Raises:
            ValueError: a header that HTTP does not allow; says which.
        """
        head = heads.render(200, headers)
        lines = [b"HTTP/1.1 101 Switching Protocols\r\n"]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in self._handshake]
        own = head.text.splitlines(keepends=True)[1:]
        lines += [line for line in own if not line.startswith(_OWN_HEADERS)]
        return head._replace(status=101, text=b"".join(lines))

    # -- from the client --------------------------------------------------------------------

    @property
    def has_more(self) -> bool:
        """Bytes that came are not unpacked yet; `feed(b"", …)` goes on with them."""
        return bool(self._rest)

    def feed(self, data: bytes, max_bytes: int = _UNBOUNDED) -> list[Message | Closed]:
        """Take bytes of the client; a `Closed` is the last event ever.

        Answers that the protocol asks for (a pong, the echo of a close) are in `take`.

        Args:
            data: what has come.
            max_bytes: no more is unpacked when messages have more than that; below 0: nothing is.
        """
        rest = self._rest + data if self._rest else data
        events: list[Message | Closed] = []
        at = num_bytes = 0
        while at < len(rest) and num_bytes <= max_bytes:
            end = at + self._slice_bytes
            # What cannot grow, or is small, is taken as it is.
            part = rest if at == 0 and end >= len(rest) else rest[at:end]
            at += len(part)
            for event in self._unpack(part):
                events.append(event)
                if isinstance(event, Closed):
                    self._rest = b""
                    return events
                num_bytes += len(event.data)
        self._rest = rest[at:]
        return events

    def _unpack(self, data: bytes) -> Iterator[Message | Closed]:
        protocol = self._protocol
        protocol.receive_data(data)
        # Frames alone: the handshake was read elsewhere.
        for frame in cast("list[Frame]", protocol.events_received()):
            opcode = frame.opcode
            if opcode is Opcode.CLOSE:
                close = protocol.close_rcvd
                assert close is not None
                yield Closed(int(close.code), close.reason, failed=False)
                return
            if opcode is Opcode.PING or opcode is Opcode.PONG:
                continue
            if opcode is not Opcode.CONT:
                self._is_text = opcode is Opcode.TEXT
            if not frame.fin:
                self._partial += frame.data
                continue
            whole = bytes(frame.data)
            if self._partial:
                whole = bytes(self._partial) + whole
                self._partial.clear()
            if self._is_text and not _is_utf8(whole):
                protocol.fail(INVALID_DATA, "a text message is not valid UTF-8")
                yield Closed(INVALID_DATA, "", failed=True)
                return
            yield Message(self._is_text, whole)
        if protocol.parser_exc is not None:
            sent = protocol.close_sent
            code = INTERNAL_ERROR if sent is None else int(sent.code)
            yield Closed(code, "" if sent is None else sent.reason, failed=True)

    # -- to the client ----------------------------------------------------------------------

    def send(self, is_text: bool, data: bytes | memoryview) -> None:
        """Write a message; dropped when the end has begun."""
        if self.is_open:
            (self._protocol.send_text if is_text else self._protocol.send_binary)(bytes(data))

    def ping(self) -> None:
        """Ask whether the client is still there."""
        if self.is_open:
            self._protocol.send_ping(b"")

    def close(self, code: int, reason: str) -> None:
        """Begin the end; the client is expected to answer it."""
        if not self.is_open:
            return
        try:
            self._protocol.send_close(code, shortened(reason))
        except ProtocolError:
            # A code that may not travel (1005, 1006) or does not exist.
            self._protocol.send_close(INTERNAL_ERROR)

    def fail(self, code: int, reason: str) -> None:
        """End without waiting for the client's answer."""
        if self.is_open:
            self._protocol.fail(code, shortened(reason))

    def take(self, last_only: bool = False) -> list[bytes]:
        """What is to be written now.

        Args:
            last_only: of several pongs only the last one, which RFC 6455 allows: a client that
                asks and does not read fills no memory.
        """
        # An empty part stands for the end of the stream; whoever closes knows that anyway.
        writes = [part for part in self._protocol.data_to_send() if part]
        return writes[-1:] if last_only else writes


def shortened(reason: str) -> str:
    """Cut a reason to what a close frame can carry, at the end of a character. Pure."""
    data = reason.encode("utf-8", "replace")
    if len(data) <= _MAX_REASON_BYTES:
        return data.decode()
    return data[:_MAX_REASON_BYTES].decode("utf-8", "ignore")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
