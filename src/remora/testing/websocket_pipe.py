"""One WebSocket of an ASGI client, as the bytes that a client on a socket would send."""

from __future__ import annotations

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import WebSocketURI

from remora.proxy.connection import ClientConnection
from remora.testing.pipe import Message, Pipe, Receive, Scope, request_head

#: The code of a connection that ends without a close frame.
_NO_CODE = 1005
_HANDSHAKE = frozenset(
    (
        b"connection",
        b"upgrade",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
    )
)


class WebSocketPipe(Pipe):
    """The client's end of a connection that becomes a WebSocket."""

    def __init__(self, connection: ClientConnection, scope: Scope) -> None:
        self._scope = scope
        self._protocol = ClientProtocol(
            WebSocketURI(False, "testserver", 80, "/", ""),
            subprotocols=list(scope.get("subprotocols", ())) or None,
            max_size=None,
        )
        self._is_open = False
        self._pieces: list[bytes] = []
        self._is_text = False
        super().__init__(connection, scope)

    async def upload(self, receive: Receive) -> None:
        """Shake hands, then send what the client says."""
        await receive()  # `websocket.connect`
        request = self._protocol.connect()
        self._protocol.send_request(request)
        self._protocol.data_to_send()
        headers = [(k, v) for k, v in self._scope["headers"] if k.lower() not in _HANDSHAKE]
        own = [(k.lower().encode(), v.encode()) for k, v in request.headers.raw_items()]
        headers += [(name, value) for name, value in own if name in _HANDSHAKE]
        self.feed(request_head("GET", self._scope, headers))
        while True:
            message = await receive()
            await self.may_upload.wait()
            if message["type"] == "websocket.disconnect":
                break
            if message.get("text") is not None:
                self._protocol.send_text(message["text"].encode())
            else:
                self._protocol.send_binary(message["bytes"])
            self._flush()
        code = message.get("code", 1000)
        if self._is_open and not self.complete:
            if code == _NO_CODE:
                self._protocol.send_close()
            else:
                self._protocol.send_close(code, message.get("reason") or "")
            self._flush()

    def on_bytes(self, data: bytes) -> None:
        """Read a part of what the server sends."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._on_response(event)
            else:
                assert isinstance(event, Frame)
                self._on_frame(event)
        self._flush()

    def _on_response(self, response: Response) -> None:
        headers = [(k.lower().encode(), v.encode()) for k, v in response.headers.raw_items()]
        if isinstance(self._protocol.handshake_exc, InvalidHandshake):
            status = response.status_code
            start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
            self._end(start, {"type": "websocket.http.response.body", "body": response.body or b""})
            return
        self._is_open = True
        shown = [(name, value) for name, value in headers if name not in _HANDSHAKE]
        accepted = {"subprotocol": self._protocol.subprotocol, "headers": shown}
        self.put({"type": "websocket.accept", **accepted})

    def _on_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            close = self._protocol.close_rcvd
            code, reason = (_NO_CODE, "") if close is None else (close.code, close.reason)
            self._end({"type": "websocket.close", "code": code, "reason": reason})
            return
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._pieces.append(bytes(frame.data))
        if frame.fin:
            data, self._pieces = b"".join(self._pieces), []
            content = {"text": data.decode()} if self._is_text else {"bytes": data}
            self.put({"type": "websocket.send", **content})

    def _end(self, *messages: Message) -> None:
        for message in messages:
            self.put(message)
        self.complete = True

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.feed(data)
