"""WebSockets through a front door, a router and a replica, with a real client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from fastapi import Depends, FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from tests.integration.http_client import read_answer, request
from tests.integration.rig import Door, Node, Rig, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close
from websockets.typing import Origin, Subprotocol

from remora.config import HTTPOptions
from remora.ingress import ingress
from remora.proxy.websocket import WebSocketExchange
from remora.replica.websocket_work import WebSocketWork

MEGABYTE = 1024 * 1024
app = FastAPI()


def pay_first() -> None:
    raise HTTPException(402, "pay first")


@ingress(app)
class Sockets:
    def __init__(self) -> None:
        self.running = 0
        self.events: list[Any] = []
        self.gate = asyncio.Event()
        self.num_sent = 0

    @contextlib.contextmanager
    def noted(self) -> Any:
        self.running += 1
        try:
            yield
        except (WebSocketDisconnect, asyncio.CancelledError) as error:
            self.events.append(getattr(error, "code", type(error).__name__))
            raise
        finally:
            self.running -= 1

    @app.websocket("/echo")
    async def echo(self, websocket: WebSocket) -> None:
        with self.noted():
            await websocket.accept()
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message["code"], message["reason"])
                if message.get("text") is not None:
                    await websocket.send_text(message["text"])
                else:
                    await websocket.send_bytes(message["bytes"])

    @app.websocket("/items/{number}")
    async def item(self, websocket: WebSocket, number: int, word: str = "none") -> None:
        await websocket.accept("chat", [(b"x-mine", b"yes"), (b"Sec-WebSocket-Accept", b"no")])
        await websocket.send_json(
            {
                "number": number,
                "word": word,
                "url": str(websocket.url),
                "offered": websocket.scope["subprotocols"],
                "state": websocket.app.state.colour,
            }
        )
        await websocket.close(4001, "enough " * 30)

    @app.websocket("/deny")
    async def deny(self, websocket: WebSocket) -> None:
        await websocket.close(4000)

    @app.websocket("/deny-in-words")
    async def deny_in_words(self, websocket: WebSocket) -> None:
        await websocket.send_denial_response(JSONResponse({"no": "entry"}, 429))

    @app.websocket("/deny-in-parts")
    async def deny_in_parts(self, websocket: WebSocket) -> None:
        parts = (part for part in ("no ", "entry"))
        await websocket.send_denial_response(StreamingResponse(parts, 429))

    @app.websocket("/depends")
    async def depends(self, websocket: WebSocket, _: None = Depends(pay_first)) -> None:
        raise AssertionError("not reached")

    @app.websocket("/fail/{when}")
    async def fail(self, websocket: WebSocket, when: str) -> None:
        if when == "late":
            await websocket.accept()
        raise RuntimeError("the secret is 42")

    @app.websocket("/odd/{what}")
    async def odd(self, websocket: WebSocket, what: str) -> None:
        if what == "header":
            await websocket.accept(headers=[(b"a", b"b\r\nc: d")])
        await websocket.accept()
        if what == "code":
            await websocket.close(1005)

    @app.websocket("/return")
    async def returns(self, websocket: WebSocket) -> None:
        await websocket.accept()

    @app.websocket("/never")
    async def never(self, websocket: WebSocket) -> None:
        with self.noted():
            await self.gate.wait()

    @app.websocket("/busy")
    async def busy(self, websocket: WebSocket) -> None:
        with self.noted():
            await websocket.accept()
            self.events.append(await websocket.receive_text())
            await self.gate.wait()
            self.events.append(await websocket.receive_text())
            await websocket.receive_text()

    @app.websocket("/flood")
    async def flood(self, websocket: WebSocket) -> None:
        with self.noted():
            await websocket.accept()
            while True:
                await websocket.send_bytes(bytes(10_000))
                self.num_sent += 1


app.state.colour = "red"


class Plain:
    async def __call__(self, request: Request) -> str:
        return request.method


@pytest.fixture
async def node(rig: Rig) -> Node:
    return await rig.node(Sockets)


@pytest.fixture
async def door(rig: Rig, node: Node) -> Door:
    return await rig.door(node)


@asynccontextmanager
async def opened(door: Door, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://127.0.0.1:{door.port}{path}", proxy=None, **options) as client:
        yield client


@asynccontextmanager
async def raw(
    door: Door, path: str, *frames: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that shakes hands, and whose frames the test writes itself."""
    reader, writer = await door.connect()
    handshake = request(
        path,
        connection="Upgrade",
        upgrade="WebSocket",
        sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
        sec_websocket_version="13",
    )
    writer.write(b"".join((handshake, *frames)))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def raw_opened(
    door: Door, path: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """As `raw`, when the handshake is over."""
    async with raw(door, path) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        yield reader, writer


async def still(number: Callable[[], int]) -> int:
    """Wait until a number has not changed for a while."""
    seen = -1
    while seen != number():
        seen = number()
        await asyncio.sleep(0.2)
    return seen


async def refusal(door: Door, path: str, **options: Any) -> Any:
    with pytest.raises(InvalidStatus) as caught:
        async with opened(door, path, **options):
            pass
    return caught.value.response


async def close_of(client: ClientConnection) -> tuple[int, str]:
    """Read to the end; the code and reason that came with it."""
    await asyncio.wait_for(client.wait_closed(), 5)
    return client.close_code or 0, client.close_reason or ""


def rows(door: Door) -> list[tuple[str, int, int]]:
    return sorted(
        (method, status, count) for _, method, status, _, count, _ in door.counters.rows()
    )


def exchange_of(door: Door) -> WebSocketExchange:
    (connection,) = door.state.connections
    exchange: WebSocketExchange = cast(Any, connection).active
    return exchange


def look_twice(exchange: WebSocketExchange) -> None:
    """Let the time pass in which a client would be pinged, and would have to answer."""
    for _ in range(2):
        exchange._pings.stop()
        exchange._pings._look()


def cut(client: ClientConnection) -> None:
    """Go without a word."""
    client.transport.abort()


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.one_loop
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 70_000, 3 * MEGABYTE])
async def test_text_and_binary_messages_pass_both_ways(
    door: Door, compression: Any, size: int
) -> None:
    async with opened(door, "/echo", compression=compression, max_size=None) as client:
        for message in ("é" * (size // 2), bytes(size)):
            await client.send(message)
            assert await client.recv() == message


async def test_a_message_in_fragments_arrives_as_one(door: Door) -> None:
    async with opened(door, "/echo", compression=None) as client:
        await client.send(["a", "", "bé", "c"])
        assert await client.recv() == "abéc"


async def test_messages_keep_their_order(door: Door) -> None:
    async with opened(door, "/echo") as client:
        for number in range(500):
            await client.send(str(number))
        assert [await client.recv() for _ in range(500)] == [str(n) for n in range(500)]


# -- the handshake -------------------------------------------------------------------------------


@pytest.mark.one_loop
async def test_the_handshake_carries_what_the_application_says(door: Door) -> None:
    offered = [Subprotocol("soap"), Subprotocol("chat")]
    path = "/items/7?word=hi"
    async with opened(
        door, path, subprotocols=offered, additional_headers={"x-request-id": "mine"}
    ) as client:
        answer = client.response
        assert answer is not None
        assert (client.subprotocol, answer.headers["x-mine"]) == ("chat", "yes")
        assert answer.headers.get_all("x-request-id") == ["mine"]
        assert len(answer.headers.get_all("date")) == 1
        assert await client.recv() == (
            '{"number":7,"word":"hi","url":"ws://127.0.0.1:'
            f'{door.port}{path}","offered":["soap","chat"],"state":"red"}}'
        )


async def test_an_application_below_a_prefix_is_found(rig: Rig) -> None:
    node = await rig.node(Sockets)
    door = await rig.door(node, options=HTTPOptions(root_path="/outer"))
    async with opened(door, "/echo") as client:
        await client.send("x")
        assert await client.recv() == "x"
    answer = await refusal(door, "/-/nothing")
    assert (answer.status_code, answer.headers["connection"]) == (404, "close")


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/deny", 403, b""),
        ("/nobody", 403, b""),
        ("/deny-in-words", 429, b'{"no":"entry"}'),
        ("/depends", 402, b'{"detail":"pay first"}'),
        ("/fail/early", 500, b"Internal Server Error"),
        ("/odd/header", 500, b"Internal Server Error"),
    ],
)
async def test_a_refused_handshake_is_an_http_answer(
    door: Door, path: str, status: int, body: bytes
) -> None:
    answer = await refusal(door, path, additional_headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.body) == (status, body)
    assert answer.headers["x-request-id"] == "mine"
    await until(lambda: rows(door) == [("WEBSOCKET", status, 1)])


@pytest.mark.one_loop
async def test_a_deployment_without_an_asgi_app_refuses_in_words(rig: Rig) -> None:
    door = await rig.door(await rig.node(Plain))
    answer = await refusal(door, "/")
    assert answer.status_code == 501
    assert b"Deployment 'App' serves no WebSockets" in answer.body
    assert b"@ingress" in answer.body


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"sec_websocket_key": "short"}, 400),
        ({"sec_websocket_version": "12"}, 400),
        ({"method": "POST"}, 405),
        ({"body": b"x"}, 400),
        ({"connection": "close"}, 404),
    ],
)
async def test_a_malformed_handshake_is_refused(
    door: Door, change: dict[str, Any], status: int
) -> None:
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec_websocket_version": "13",
    }
    reader, writer = await door.connect()
    writer.write(request("/echo", **{**headers, **change}))
    answer = await read_answer(reader)
    assert (answer.status, answer.headers.get("connection")) == (status, "close")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_message_right_behind_the_handshake_is_not_lost(
    door: Door,
) -> None:
    async with raw(door, "/echo", b"\x81\x82\x00\x00\x00\x00hi") as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        assert b"connection: close" not in head.lower()
        assert await reader.readexactly(4) == b"\x81\x02hi"


async def test_time_is_up_for_the_handshake_alone(rig: Rig) -> None:
    node = await rig.node(Sockets)
    door = await rig.door(node, options=HTTPOptions(request_timeout_s=0.2))
    answer = await refusal(door, "/never")
    assert answer.status_code == 408
    await until(lambda: node.target.events == ["CancelledError"])
    async with opened(door, "/echo") as client:
        await until(lambda: node.replica.ongoing == 1)
        (work,) = [w for c in node.replica._connections for w in c._work.values()]
        assert isinstance(work, WebSocketWork)
        assert work.context is not None
        assert work.context.deadline is None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.recv(), 0.4)
        await client.send("still here")
        assert await client.recv() == "still here"


async def test_a_client_that_leaves_before_it_is_accepted_stops_its_handler(
    node: Node,
    door: Door,
) -> None:
    attempt = asyncio.create_task(refusal(door, "/never"))
    await until(lambda: node.target.running == 1)
    attempt.cancel()
    await until(lambda: node.target.events == ["CancelledError"])
    await until(lambda: rows(door) == [("WEBSOCKET", 499, 1)])


# -- the end -------------------------------------------------------------------------------------


async def test_the_application_closes_with_its_code_and_reason(
    door: Door,
) -> None:
    async with opened(door, "/items/1", subprotocols=[Subprotocol("chat")]) as client:
        # A reason that is too long for its frame is cut.
        assert await close_of(client) == (4001, ("enough " * 30)[:123])
    await until(lambda: rows(door) == [("WEBSOCKET", 4001, 1)])


@pytest.mark.one_loop
@pytest.mark.parametrize(("code", "heard"), [(1000, 1000), (1001, 1001), (4321, 4321)])
async def test_the_client_closes_with_its_code(
    node: Node, door: Door, code: int, heard: int
) -> None:
    async with opened(door, "/echo") as client:
        await client.close(code, "enough")
        assert client.protocol.close_rcvd == Close(code, "enough")
    await until(lambda: node.target.events == [heard])
    await until(lambda: node.replica.ongoing == 0)
    await until(lambda: rows(door) == [("WEBSOCKET", code, 1)])
    is_error = f'status_code="{code}"' in door.counters.render().partition("error_requests")[2]
    errors = [
        line for line in door.counters.render().split("\n") if "error_requests_total{" in line
    ]
    assert (bool(errors), is_error) == (code == 4321, True)


async def test_a_client_without_a_code_is_heard_as_1005(node: Node, door: Door) -> None:
    async with opened(door, "/echo") as client:
        client.protocol.send_close()
        for data in client.protocol.data_to_send():
            client.transport.write(data)
        await client.wait_closed()
    await until(lambda: node.target.events == [1005])
    await until(lambda: rows(door) == [("WEBSOCKET", 1005, 1)])


async def test_a_connection_that_is_cut_is_heard_as_1005(node: Node, door: Door) -> None:
    async with opened(door, "/echo") as client:
        cut(client)
        await until(lambda: node.target.events == [1005])
    await until(lambda: rows(door) == [("WEBSOCKET", 1006, 1)])
    await until(lambda: node.replica.ongoing == 0)


async def test_a_handler_that_fails_closes_with_1011(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "remora")
    async with opened(door, "/fail/late") as client:
        assert await close_of(client) == (1011, "")
    assert "App failed, WebSocket /fail/late" in caplog.text
    assert "the secret is 42" in caplog.text


@pytest.mark.one_loop
async def test_a_code_that_cannot_travel_is_the_handlers_error(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(door, "/odd/code") as client:
        assert await close_of(client) == (1011, "")
    assert "1005 is no code" in caplog.text


@pytest.mark.one_loop
async def test_a_handler_that_returns_closes_with_1000(door: Door) -> None:
    async with opened(door, "/return") as client:
        assert await close_of(client) == (1000, "")


@pytest.mark.one_loop
async def test_a_client_that_leaves_logs_no_failure(
    node: Node, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    for end in (lambda c: c.close(), None):
        async with opened(door, "/echo") as client:
            await (end(client) if end else asyncio.sleep(0))
            cut(client)
        await until(lambda: node.replica.ongoing == 0)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_what_was_sent_before_a_close_is_still_handled(node: Node, door: Door) -> None:
    async with opened(door, "/busy") as client:
        await client.send("one")
        await client.send("two")
        await until(lambda: node.target.events == ["one"])
    assert node.target.running == 1
    node.target.gate.set()
    await until(lambda: node.target.events == ["one", "two", 1000])
    await until(lambda: rows(door) == [("WEBSOCKET", 1000, 1)])


async def test_a_connection_that_is_cut_stops_a_busy_handler(node: Node, door: Door) -> None:
    async with opened(door, "/busy") as client:
        await client.send("one")
        await until(lambda: node.target.events == ["one"])
        cut(client)
        await until(lambda: node.target.events == ["one", "CancelledError"])


async def test_a_handler_that_does_not_end_for_a_client_that_left_is_stopped(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebSocketExchange, "leave_timeout_s", 0.1)
    async with opened(door, "/busy") as client:
        await client.send("one")
        await until(lambda: node.target.events == ["one"])
    await until(lambda: node.target.events == ["one", "CancelledError"])
    await until(lambda: rows(door) == [("WEBSOCKET", 1000, 1)])


async def test_a_handler_goes_on_for_a_client_that_asked_for_that(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebSocketExchange, "leave_timeout_s", 0.1)
    stay = {"x-request-disconnect-disabled": "?1"}
    async with opened(door, "/busy", additional_headers=stay) as client:
        await client.send("one")
        await client.send("two")
        await until(lambda: node.target.events == ["one"])
        cut(client)
    with pytest.raises(TimeoutError):
        await until(lambda: node.target.running == 0, 0.3)
    node.target.gate.set()
    await until(lambda: node.target.events == ["one", "two", 1005])


async def test_a_client_that_does_not_answer_a_close_is_cut(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebSocketExchange, "close_timeout_s", 0.1)
    async with raw_opened(door, "/return") as (reader, _):
        assert await reader.readexactly(4) == b"\x88\x02\x03\xe8"
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
    await until(lambda: rows(door) == [("WEBSOCKET", 1000, 1)])


# -- bad clients ---------------------------------------------------------------------------------


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x82\x00\x00\x00\x00\xff\xff", 1007),
        (b"\x01\x81\x00\x00\x00\x00\xc3\x80\x81\x00\x00\x00\x00a", 1007),
        (b"\x81\x02hi", 1002),
        (b"\x80\x80\x00\x00\x00\x00", 1002),
        (b"\x82\xff\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x00", 1009),
    ],
)
async def test_a_client_that_breaks_a_rule_is_told_which(
    node: Node, door: Door, data: bytes, code: int
) -> None:
    async with raw_opened(door, "/echo") as (reader, writer):
        writer.write(data)
        frame = await asyncio.wait_for(reader.read(), 5)
        assert (frame[0], int.from_bytes(frame[2:4], "big")) == (0x88, code)
    await until(lambda: node.target.events == [code])
    await until(lambda: rows(door) == [("WEBSOCKET", code, 1)])


async def test_a_message_above_the_limit_ends_with_1009_however_it_is_cut(rig: Rig) -> None:
    door = await rig.door(
        await rig.node(Sockets), options=HTTPOptions(websocket_max_message_bytes=100_000)
    )
    for message in (bytes(100_001), [bytes(60_000), bytes(60_000)]):
        async with opened(door, "/echo") as client:
            with contextlib.suppress(ConnectionClosed):
                await client.send(message)
            assert (await close_of(client))[0] == 1009


async def test_pings_are_answered_and_a_dead_client_is_found(rig: Rig) -> None:
    node = await rig.node(Sockets)
    options = HTTPOptions(websocket_ping_interval_s=0.05, websocket_ping_timeout_s=0.2)
    door = await rig.door(node, options=options)
    async with opened(door, "/echo") as client:
        await asyncio.wait_for(await client.ping(), 5)
        # One that answers stays for longer than the limits.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.recv(), 0.6)
    await until(lambda: node.target.events == [1000])
    async with raw_opened(door, "/echo") as (reader, _):
        assert await asyncio.wait_for(reader.readexactly(2), 5) == b"\x89\x00"
        await until(lambda: node.target.events == [1000, 1005])


@pytest.mark.parametrize("interval_s", [0.05, None])
async def test_a_silent_client_is_kept_where_the_options_say_so(
    rig: Rig, interval_s: float | None
) -> None:
    node = await rig.node(Sockets)
    options = HTTPOptions(websocket_ping_interval_s=interval_s, websocket_ping_timeout_s=None)
    door = await rig.door(node, options=options)
    async with raw_opened(door, "/echo") as (reader, _):
        if interval_s:
            assert await asyncio.wait_for(reader.readexactly(6), 5) == b"\x89\x00" * 3
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)
        assert node.target.running == 1


async def test_a_client_that_never_reads_slows_its_own_handler_only(rig: Rig) -> None:
    node = await rig.node(Sockets)
    door = await rig.door(node)
    async with raw_opened(door, "/flood"):
        exchange = exchange_of(door)
        await until(lambda: node.target.num_sent > 50)
        # The kernel's buffers, ours, and a window: nowhere near without a bound.
        assert await still(lambda: node.target.num_sent) * 10_000 < 12 * MEGABYTE
        async with opened(door, "/echo") as client:
            await client.send("x")
            assert await client.recv() == "x"
        # It is not asked whether it is there while it does not read, and so it owes no answer.
        look_twice(exchange)
        assert exchange._session.is_open
        assert node.target.running == 1
    await until(lambda: node.target.running == 0)


async def test_a_client_that_reads_slowly_is_not_cut_off_for_a_ping_that_it_has_not_read_yet(
    node: Node, door: Door
) -> None:
    async with raw_opened(door, "/flood") as (reader, _):
        exchange = exchange_of(door)
        await until(lambda: exchange.connection.is_write_paused)
        exchange._pings.is_heard = False
        while exchange.connection.is_write_paused:
            assert await reader.read(MEGABYTE)
            await asyncio.sleep(0)
        exchange._pings._look()
        assert exchange._session.is_open
        assert node.target.running == 1


async def test_little_that_unpacks_to_much_waits_packed(node: Node, door: Door) -> None:
    async with opened(door, "/busy") as client:
        await client.send("one")
        await until(lambda: node.target.events == ["one"])
        for _ in range(40):
            await client.send("x" * 4 * MEGABYTE)
        exchange = exchange_of(door)
        await until(lambda: exchange._session.has_more)
        await still(lambda: exchange._buffered_bytes)
        assert exchange._buffered_bytes < 10 * MEGABYTE
        # What the handler takes makes room, without a byte from the socket.
        node.target.gate.set()
        await until(lambda: len(node.target.events) == 2)
        await until(lambda: len(exchange._session._rest) < 40 * 4096)
        assert node.target.events[1] == "x" * 4 * MEGABYTE


async def test_all_of_what_waits_packed_arrives_and_then_the_close(
    node: Node,
    door: Door,
) -> None:
    async with opened(door, "/echo", max_size=None) as client:
        sent = [str(number) * 300_000 for number in range(30)]
        reading = asyncio.create_task(_read_all(client, len(sent)))
        for message in sent:
            await client.send(message)
        assert await reading == sent
        await client.close(4000)
    await until(lambda: node.target.events == [4000])


async def _read_all(client: ClientConnection, number: int) -> list[Any]:
    return [await asyncio.wait_for(client.recv(), 5) for _ in range(number)]


async def test_a_client_that_floods_is_slowed(door: Door) -> None:
    sent = 0
    async with opened(door, "/busy", compression=None) as client:

        async def flood() -> None:
            nonlocal sent
            while True:
                await client.send(bytes(10_000) if sent else "one")
                sent += 1

        flooding = asyncio.create_task(flood())
        await until(lambda: sent > 50)
        assert await still(lambda: sent) * 10_000 < 12 * MEGABYTE
        assert exchange_of(door)._buffered_bytes < 2 * MEGABYTE
        flooding.cancel()
        cut(client)


async def test_pings_of_a_client_that_never_reads_fill_no_memory(
    node: Node,
    door: Door,
) -> None:
    async with raw_opened(door, "/flood") as (_, writer):
        await still(lambda: node.target.num_sent)
        exchange = exchange_of(door)
        assert exchange.connection.is_write_paused
        transport = exchange.connection.inlet._transport
        before = transport.get_write_buffer_size()
        for number in range(1000):
            writer.write(b"\x89\x84" + bytes(4) + number.to_bytes(4, "big"))
        last = b"\x8a\x04" + (999).to_bytes(4, "big")
        await until(lambda: exchange._pong == [last])
        assert transport.get_write_buffer_size() == before
    await until(lambda: node.target.running == 0)


# -- limits, replicas and servers that go --------------------------------------------------------


async def test_a_websocket_counts_as_one_ongoing_request(rig: Rig) -> None:
    node = await rig.node(Sockets, max_ongoing=1)
    door = await rig.door(node, max_queued_requests=0)
    async with opened(door, "/echo"):
        assert node.replica.ongoing == 1
        answer = await refusal(door, "/echo")
        assert answer.status_code == 503
    await until(lambda: node.replica.ongoing == 0)
    async with opened(door, "/echo") as client:
        await client.send("x")
        assert await client.recv() == "x"


async def test_a_replica_that_dies_closes_with_1011(node: Node, door: Door) -> None:
    async with opened(door, "/echo") as client:
        node.die()
        assert (await close_of(client))[0] == 1011
    await until(lambda: rows(door) == [("WEBSOCKET", 1011, 1)])


@pytest.mark.one_loop
async def test_a_handshake_that_a_dying_replica_had_is_tried_elsewhere(rig: Rig) -> None:
    first = await rig.node(Sockets)
    door = await rig.door(first)
    attempt = asyncio.create_task(refusal(door, "/never"))
    await until(lambda: first.target.running == 1)
    second = await rig.node(Sockets)
    door.router.update(rig.route(second))
    first.die()
    await until(lambda: second.target.running == 1)
    attempt.cancel()
    await until(lambda: second.target.running == 0)


async def test_a_drain_waits_for_open_sockets_and_the_stop_closes_them_with_1012(
    node: Node,
    door: Door,
) -> None:
    async with opened(door, "/echo") as client:
        draining = asyncio.create_task(node.replica.drain())
        await client.send("on")
        assert await client.recv() == "on"
        assert not draining.done()
        stopping = asyncio.create_task(node.replica.stop())
        assert await close_of(client) == (1012, "the replica stops")
        await asyncio.wait_for(draining, 5)
        await asyncio.wait_for(stopping, 5)
        assert node.replica.ongoing == 0
    await until(lambda: rows(door) == [("WEBSOCKET", 1012, 1)])


async def test_a_drain_ends_when_the_last_socket_is_closed(node: Node, door: Door) -> None:
    async with opened(door, "/echo"):
        draining = asyncio.create_task(node.replica.drain())
        await until(lambda: node.replica.turns_away)
    await asyncio.wait_for(draining, 5)


async def test_a_replica_that_was_asked_to_leave_and_dies_closes_with_1012(
    node: Node,
    door: Door,
) -> None:
    async with opened(door, "/echo") as client:
        draining = asyncio.create_task(node.replica.drain())
        (link,) = door.router.members.links.values()
        await until(lambda: link.leaving)
        node.die()
        assert (await close_of(client))[0] == 1012
    await draining


async def test_a_server_that_stops_closes_with_1012(node: Node, door: Door) -> None:
    async with opened(door, "/echo") as client:
        for connection in list(door.state.connections):
            connection.shutdown()
        assert await close_of(client) == (1012, "the server stops")
    await until(lambda: node.target.events == [1012])
    await until(lambda: not door.state.connections)
    await until(lambda: rows(door) == [("WEBSOCKET", 1012, 1)])


async def test_a_handshake_that_is_not_answered_is_refused_by_a_server_that_stops(
    node: Node,
    door: Door,
) -> None:
    refused = asyncio.create_task(refusal(door, "/never"))
    await until(lambda: node.target.running == 1)
    for connection in list(door.state.connections):
        connection.shutdown()
    response = await asyncio.wait_for(refused, 5)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    await until(lambda: node.replica.ongoing == 0 and not door.state.connections)


async def test_a_refusal_may_come_in_parts(door: Door) -> None:
    response = await refusal(door, "/deny-in-parts")
    assert (response.status_code, response.body) == (429, b"no entry")


async def test_a_client_that_leaves_is_noticed_while_its_handler_does_not_receive(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.proxy.presence.Presence.watch_every_s", 0.02)
    async with raw_opened(door, "/busy") as (_, writer):
        frame = b"\x81\xfe\xff\xff" + bytes(4) + bytes(65535)
        writer.write(frame * 20)
        await until(lambda: exchange_of(door).connection.inlet.is_paused)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await until(lambda: node.replica.ongoing == 0)


@pytest.mark.one_loop
async def test_an_open_websocket_has_one_line_in_the_access_log(door: Door, rig: Rig) -> None:
    async with opened(door, "/echo?a=b", origin=Origin("http://x")) as client:
        await client.close(1001)
    log = rig.folder / "access-0.log"
    await until(lambda: log.exists() and "WEBSOCKET" in log.read_text())
    (line,) = log.read_text().splitlines()
    assert " default WEBSOCKET '/echo' 1001 " in line
    assert line.endswith("ms /echo")
