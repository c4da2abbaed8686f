"""One client's connection: its limits, its end, and what an application may set itself."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import weakref
from contextlib import suppress
from typing import Any, cast

import pytest
from tests.integration.http_client import ask, read_answer, request
from tests.integration.rig import Door, Node, Rig, until

from remora.config import HTTPOptions
from remora.proxy.accept import Tally
from remora.proxy.connection import ClientConnection
from remora.proxy.exchange import Exchange
from remora.proxy.patience import Patience
from remora.proxy.presence import Presence
from remora.proxy.server import HttpServer
from remora.router.call import CallState

MEGABYTE = 1024 * 1024


class App:
    """An ASGI application whose paths name its methods."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.sent = 0

    def __remora_asgi_app__(self) -> Any:
        return self.app

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("not spoken here")
        self.running += 1
        try:
            await getattr(self, scope["path"].strip("/"))(receive, send)
        finally:
            self.running -= 1

    async def answer(self, send: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"text"})

    async def text(self, receive: Any, send: Any) -> None:
        await self.answer(send)

    async def hold(self, receive: Any, send: Any) -> None:
        await self.gate.wait()
        await self.answer(send)

    async def large(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            part = {"type": "http.response.body", "body": bytes(65536), "more_body": True}
            await send(part)
            self.sent += 65536
        await send({"type": "http.response.body"})

    async def length(self, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await self.answer(send)

    async def early(self, receive: Any, send: Any) -> None:
        await self.answer(send)

    async def own_headers(self, receive: Any, send: Any) -> None:
        date = b"Fri, 02 Jan 1970 00:00:00 GMT"
        await self.answer(send, 200, (b"Date", date), (b"X-Request-Id", b"mine"))

    async def no_content(self, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body"})

    async def hints(self, receive: Any, send: Any) -> None:
        await self.answer(send, 103)


@pytest.fixture
async def node(rig: Rig) -> Node:
    return await rig.node(App)


@pytest.fixture
async def door(rig: Rig, node: Node) -> Door:
    return await rig.door(node)


# -- what the application sets -----------------------------------------------------------------


async def test_headers_that_the_app_sets_do_not_come_twice(door: Door) -> None:
    answer = await ask(door, "/own_headers", x_request_id="the client's")
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["date"] == "Fri, 02 Jan 1970 00:00:00 GMT"


async def test_a_streamed_204_says_no_length(door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request("/no_content") + request("/text"))
    answer = await read_answer(reader)
    assert (answer.status, "content-length" in answer.headers) == (204, False)
    assert (await read_answer(reader)).body == b"text"
    writer.close()


async def test_an_informational_status_is_no_answer(door: Door) -> None:
    assert (await ask(door, "/hints")).status == 500


# -- who leaves --------------------------------------------------------------------------------


async def test_work_that_goes_on_is_not_stopped_by_a_client_that_did_not_read(
    node: Node,
    door: Door,
) -> None:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", door.port))
    await loop.sock_sendall(client, request("/large", x_request_disconnect_disabled="?1"))
    await until(lambda: door.state.connections)
    (connection,) = list(door.state.connections)
    await until(lambda: connection.is_write_paused)  # type: ignore[union-attr]
    client.close()
    await until(lambda: not door.state.connections)
    await until(lambda: node.replica.ongoing == 0)
    assert node.target.sent == 400 * 65536


async def test_an_answer_without_a_replica_ends_its_deadline(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = HTTPOptions(request_timeout_s=30, max_body_bytes=10)
    door = await rig.door(await rig.node(App), options=options)
    closed: list[Exchange] = []
    monkeypatch.setattr(door.front, "close", closed.append)
    assert (await ask(door, "/text", "POST", bytes(11))).status == 413
    (exchange,) = closed
    assert (exchange.state, exchange._timer) == (CallState.DONE, None)


# -- limits ------------------------------------------------------------------------------------


async def test_the_limit_of_a_head_is_the_option(rig: Rig) -> None:
    door = await rig.door(await rig.node(App), options=HTTPOptions(max_head_bytes=300))
    assert (await ask(door, "/text", x="v" * 200)).status == 200
    assert (await ask(door, "/text", x="v" * 300)).status == 431
    # Behind another request, nothing can be said before that one's answer.
    reader, writer = await door.connect()
    writer.write(request("/text") + request("/text", x="v" * 300))
    assert (await read_answer(reader)).status == 200
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize(("path", "status"), [("/early", 200), ("/length", 413)])
async def test_a_chunked_body_that_is_too_large_counts_only_until_the_answer(
    rig: Rig, path: str, status: int
) -> None:
    door = await rig.door(await rig.node(App), options=HTTPOptions(max_body_bytes=10))
    reader, writer = await door.connect()
    writer.write(request(path, "POST", transfer_encoding="chunked"))
    too_large = b"b\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n"
    if status == 200:
        assert (await read_answer(reader)).status == 200
        writer.write(too_large + request("/text"))
        assert (await read_answer(reader)).status == 200
    else:
        writer.write(too_large)
        assert (await read_answer(reader)).status == 413
    writer.close()


async def test_a_head_behind_another_request_has_its_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "head_timeout_s", 0.05)
    door = await rig.door(await rig.node(App))
    reader, writer = await door.connect()
    writer.write(request("/text") + b"GET /te")
    assert (await read_answer(reader)).status == 200
    assert (await read_answer(reader)).status == 408
    writer.close()


async def test_an_idle_connection_is_kept_as_long_as_the_option_says(rig: Rig) -> None:
    door = await rig.door(await rig.node(App), options=HTTPOptions(keep_alive_timeout_s=0.1))
    reader, writer = await door.connect()
    loop = asyncio.get_running_loop()
    # Its first request may take longer: nothing has been asked yet.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    for _ in range(3):
        writer.write(request("/text"))
        assert (await read_answer(reader)).status == 200
    answered_at = loop.time()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert 0.09 < loop.time() - answered_at < 2
    writer.close()


@pytest.mark.parametrize("framing", ("small", "large", "chunked"))
async def test_a_body_that_stops_coming_is_408(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, framing: str
) -> None:
    monkeypatch.setattr(Patience, "body_timeout_s", 0.05)
    node = await rig.node(App)
    door = await rig.door(node)
    reader, writer = await door.connect()
    headers: dict[str, Any] = {"content_length": "100" if framing == "small" else "100000"}
    if framing == "chunked":
        headers = {"transfer_encoding": "chunked"}
    writer.write(request("/length", "POST", **headers) + b"5\r\nabcde\r\n")
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    await until(lambda: node.replica.ongoing == 0)
    writer.close()


async def test_the_rest_of_a_body_that_nobody_wants_is_not_awaited_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "body_timeout_s", 0.05)
    door = await rig.door(await rig.node(App))
    reader, writer = await door.connect()
    writer.write(request("/early", "POST", content_length="100000") + b"abc")
    assert (await read_answer(reader)).status == 200
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_handler_that_takes_no_body_for_a_while_is_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "body_timeout_s", 0.05)
    node = await rig.node(App)
    door = await rig.door(node)
    reader, writer = await door.connect()
    writer.write(request("/hold", "POST", bytes(MEGABYTE)))
    await until(lambda: node.target.running == 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    node.target.gate.set()
    assert (await read_answer(reader)).status == 200
    writer.close()


# -- odd requests ------------------------------------------------------------------------------


async def test_an_upgrade_ends_the_connection_after_its_own_answer(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    upgrade = request("/text", connection="upgrade", upgrade="h2c")
    writer.write(request("/hold") + upgrade + b"PRI * HTTP/2.0\r\n\r\n")
    await until(lambda: node.target.running == 1)
    node.target.gate.set()
    first, second = await read_answer(reader), await read_answer(reader)
    assert (first.body, first.headers.get("connection")) == (b"text", None)
    assert (second.body, second.headers.get("connection")) == (b"text", "close")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize(
    ("target", "status"),
    # The last one is a path, which this application does not know.
    [(b"CONNECT x:1", b"501"), (b"GET http://[", b"400"), (b"GET //:x:y", b"500")],
)
async def test_targets_that_are_no_urls_are_refused_or_not_found(
    door: Door, target: bytes, status: bytes
) -> None:
    answer = await door.raw(target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.split(b" ")[1] == status
    assert (await ask(door, "/text")).status == 200


@pytest.mark.parametrize("place", ("front.open", "router.submit"))
async def test_an_error_of_our_own_is_a_500_and_logged(
    node: Node,
    door: Door,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:

    def broken(_: Any) -> Any:
        raise RuntimeError("no way in")

    owner, name = place.split(".")
    monkeypatch.setattr(getattr(door, owner), name, broken)
    assert (await ask(door, "/text")).status == 500
    assert "no way in" in caplog.text
    assert "Traceback" in caplog.text
    assert node.target.running == 0


# -- the server of a proxy's process -----------------------------------------------------------


async def test_the_server_ends_by_a_signal_and_its_process_goes_on(rig: Rig) -> None:
    door = await rig.door(await rig.node(App))
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server = HttpServer(door.front, Tally(bytearray(4), 0, 1))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    await until(lambda: server.started)
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request("/text"))
    assert (await read_answer(reader)).body == b"text"
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 5)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("how", ["answered", "left"])
async def test_a_connection_that_is_gone_needs_no_collector(
    node: Node, door: Door, how: str
) -> None:
    _, writer = await door.connect()
    writer.write(request("/text" if how == "answered" else "/hold"))
    await until(lambda: door.state.total_requests == 1 or node.target.running == 1)
    (connection,) = [weakref.ref(one) for one in door.state.connections]
    gc.disable()
    try:
        writer.transport.abort()
        await until(lambda: connection() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /text HTTP/1.1\r\nx-request-id: mine\r\n\r\n", 400),
        (b"GET /text HTTP/1.1\r\nx-request-id: mine\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET /text HTTP/1.1\r\nx-request-id: mine\r\na: b\r\nnonsense\r\n\r\n", 400),
        (b"GET /text HTTP/1.1\r\nx-request-id: mine\r\nx: %b\r\n\r\n" % (b"y" * 400), 431),
        (b"GET /text HTTP/1.1\r\nx-request-id: mine\r\nx: ", 408),
        (b"CONNECT x:1 HTTP/1.1\r\nx-request-id: mine\r\nhost: x\r\n\r\n", 501),
        (b"nonsense\r\n\r\n", 400),
    ],
)
async def test_a_refusal_carries_a_request_id(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, sent: bytes, status: int
) -> None:
    monkeypatch.setattr(Patience, "head_timeout_s", 0.05)
    door = await rig.door(await rig.node(App), options=HTTPOptions(max_head_bytes=300))
    reader, writer = await door.connect()
    writer.write(sent)
    answer = await read_answer(reader)
    assert answer.status == status
    if b"mine" in sent:
        assert answer.headers["x-request-id"] == "mine"
    else:
        assert len(answer.headers["x-request-id"]) > 8
    writer.close()


async def test_an_id_is_of_the_request_that_is_refused_and_of_none_before(
    rig: Rig,
) -> None:
    door = await rig.door(await rig.node(App))
    reader, writer = await door.connect()
    writer.write(request("/text", x_request_id="mine"))
    assert (await read_answer(reader)).headers["x-request-id"] == "mine"
    writer.write(b"GET /text HTTP/1.1\r\n\r\n")
    answer = await read_answer(reader)
    assert answer.status == 400
    assert answer.headers["x-request-id"] != "mine"
    writer.close()


# -- a client that sends no more -----------------------------------------------------------------

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_who_sends_no_more_gets_an_answer_that_is_there_at_once(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.proxy.half_close.HALF_CLOSE_S", 5)
    reader, writer = await door.connect()
    writer.write(request("/text"))
    writer.write_eof()
    answer = await read_answer(reader)
    assert (answer.status, answer.body) == (200, b"text")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("number", [1, 3])
async def test_who_sends_no_more_and_reads_on_is_answered_however_long_it_takes(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Presence, "watch_every_s", 0.02)
    reader, writer = await door.connect()
    writer.write(request("/hold") * number)
    writer.write_eof()
    assert await asyncio.wait_for(reader.readexactly(len(CONTINUE)), 5) == CONTINUE
    (connection,) = cast(set[ClientConnection], door.state.connections)
    half_close = connection.presence._half_close
    assert half_close is not None
    # Looked at several times after that, it is still there.
    await until(lambda: half_close._wait_s > 0.05)
    assert node.target.running == 1
    node.target.gate.set()
    answers = [await read_answer(reader) for _ in range(number)]
    assert [answer.status for answer in answers] == [200] * number
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await until(lambda: not door.state.connections)


async def test_who_has_left_is_noticed_at_once(node: Node, door: Door) -> None:
    _, writer = await door.connect()
    writer.write(request("/hold"))
    await until(lambda: node.target.running == 1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.close()
    await until(lambda: node.target.running == 0)
    assert loop.time() - began < 0.4
    await until(lambda: not door.state.connections)


async def test_a_client_of_http_1_0_that_sends_no_more_has_left(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request("/hold").replace(b"HTTP/1.1", b"HTTP/1.0"))
    await until(lambda: node.target.running == 1)
    writer.write_eof()
    await until(lambda: node.target.running == 0)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
