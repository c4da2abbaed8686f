"""What a client can cost others: order, memory, places, and the way in which connections end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests.integration.http_client import ask, read_answer, request
from tests.integration.rig import Door, Node, Rig, until

from remora.config import HTTPOptions
from remora.proxy.connection import ClientConnection
from remora.proxy.ending import Ending
from remora.proxy.limits import MIN_BODY_BYTES_PER_S, Progress
from remora.proxy.patience import Patience
from remora.proxy.presence import Presence

MEGABYTE = 1024 * 1024


class App:
    """An ASGI application whose paths name its methods."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = self.cancelled = self.body_bytes = 0
        self.heads: list[Any] = []

    def __remora_asgi_app__(self) -> Any:
        return self.app

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("not spoken here")
        self.begun += 1
        self.heads.append(scope["headers"])
        try:
            await getattr(self, scope["path"].strip("/"))(receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def answer(self, send: Any, body: bytes = b"text") -> None:
        await send({"type": "http.response.start", "status": 200, "headers": ()})
        await send({"type": "http.response.body", "body": body})

    async def text(self, receive: Any, send: Any) -> None:
        await self.answer(send)

    async def big(self, receive: Any, send: Any) -> None:
        await self.answer(send, bytes(2_000_000))

    async def huge(self, receive: Any, send: Any) -> None:
        await self.answer(send, bytes(12_000_000))

    async def hold(self, receive: Any, send: Any) -> None:
        await self.gate.wait()
        await self.answer(send)

    async def length(self, receive: Any, send: Any) -> None:
        while (message := await receive()).get("more_body"):
            self.body_bytes += len(message["body"])
        await self.answer(send)


@pytest.fixture
async def node(rig: Rig) -> Node:
    return await rig.node(App)


@pytest.fixture
async def door(rig: Rig, node: Node) -> Door:
    return await rig.door(node)


def only_connection(door: Door) -> ClientConnection:
    (connection,) = cast(set[ClientConnection], door.state.connections)
    return connection


@contextlib.contextmanager
def deaf_client(door: Door, buffer_bytes: int = 4096) -> Iterator[socket.socket]:
    """A client that takes almost nothing of what it is sent."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        client.connect(("127.0.0.1", door.port))
        client.setblocking(False)
        yield client


def reset(writer: asyncio.StreamWriter) -> None:
    """Go without a word, whatever lies in between unread."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# -- order -------------------------------------------------------------------------------------


async def test_many_quick_answers_behind_a_slow_one_cost_no_stack(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request("/hold") + request("/-/livez") * 900)
    await until(lambda: node.target.begun == 1)
    node.target.gate.set()
    assert (await read_answer(reader)).body == b"text"
    for _ in range(900):
        assert (await read_answer(reader)).body == b"success"
    writer.close()


async def test_what_is_whole_is_answered_before_what_is_broken_ends_the_connection(
    door: Door,
) -> None:
    answers = await door.raw(request("/text") * 3 + b"nonsense\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200") == 3


async def test_an_answer_that_fails_costs_its_own_client_alone(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = asyncio.create_task(ask(door, "/hold"))
    await until(lambda: node.target.begun == 1)

    def broken(_: Any) -> Any:
        raise RuntimeError("no way out")

    with monkeypatch.context() as patched:
        patched.setattr(door.front, "default_lines", broken)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await ask(door, "/text")
    assert "no way out" in caplog.text
    node.target.gate.set()
    assert (await other).status == 200


# -- trailers ----------------------------------------------------------------------------------


async def test_trailers_are_no_headers(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    door = await rig.door(node)
    held = asyncio.create_task(ask(door, "/hold"))
    await until(lambda: node.target.begun == 1)
    reader, writer = await door.connect()
    # All of it is here before the request is sent on.
    writer.write(
        request("/text", "POST", transfer_encoding="chunked")
        + b"2\r\nhi\r\n0\r\nx-user: admin\r\nhost: other\r\n\r\n"
    )
    await until(lambda: door.router.num_waiting == 1)
    node.target.gate.set()
    assert (await read_answer(reader)).status == 200
    # The last is Remora's own.
    *headers, (last, _) = node.target.heads[-1]
    assert headers == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]
    assert last == b"x-request-id"
    writer.write(request("/text"))
    assert (await read_answer(reader)).status == 200
    writer.close()
    await held


@pytest.mark.parametrize("what", ["many trailers", "one trailer", "an extension"])
async def test_what_stands_beside_a_body_is_bounded(node: Node, door: Door, what: str) -> None:
    reader, writer = await door.connect()
    writer.write(request("/length", "POST", transfer_encoding="chunked") + b"2\r\nhi\r\n")
    writer.write({"many trailers": b"0\r\n", "one trailer": b"0\r\nx: "}.get(what, b"1;"))
    part = b"x: y\r\n" * 1000 if what == "many trailers" else b"x" * 6000
    # More than one read of the socket holds.
    for _ in range(100):
        writer.write(part)
        await asyncio.sleep(0)
    assert (await read_answer(reader)).status == 431
    writer.close()
    await until(lambda: node.replica.ongoing == 0)


# -- clients that do not read ------------------------------------------------------------------


async def test_nothing_is_begun_for_a_client_that_does_not_read(node: Node, door: Door) -> None:
    with deaf_client(door) as client:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, request("/big") * 40)
        await until(lambda: door.state.connections and only_connection(door).is_write_paused)
        await until(lambda: node.replica.ongoing == 0)
        # As far as the buffers of the kernel and of one answer go.
        assert node.target.begun < 10
        # When it reads on, the rest follows.
        num_read = 0
        while num_read < 40 * 2_000_000:
            num_read += len(await loop.sock_recv(client, MEGABYTE))
        assert node.target.begun == 40


@pytest.mark.parametrize("end", ["idle", "close", "shutdown"])
async def test_a_client_that_does_not_read_is_not_waited_for_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(Patience, "take_timeout_s", 0.1)
    monkeypatch.setattr(Ending, "linger_s", 0.05)
    node = await rig.node(App)
    options = HTTPOptions(keep_alive_timeout_s=0.05 if end == "idle" else 60)
    door = await rig.door(node, options=options)
    with deaf_client(door) as client:
        headers: dict[str, Any] = {"connection": "close"} if end == "close" else {}
        asked = request("/big", **headers) * (1 if headers else 9)
        await asyncio.get_running_loop().sock_sendall(client, asked)
        await until(lambda: node.target.begun and not node.replica.ongoing)
        if end == "shutdown":
            only_connection(door).shutdown()
        await until(lambda: not door.state.connections)


async def test_a_client_that_reads_slowly_gets_all_of_its_last_answer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "take_timeout_s", 0.3)
    door = await rig.door(await rig.node(App))
    with deaf_client(door, 256 * 1024) as client:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await loop.sock_sendall(client, request("/huge", connection="close"))
        size = 0
        while part := await loop.sock_recv(client, 256 * 1024):
            size += len(part)
            await asyncio.sleep(0.02)
    assert size > 12_000_000
    assert loop.time() - began > 0.6


# -- clients that leave, or send slowly --------------------------------------------------------


@pytest.mark.parametrize("what", ["upload", "sent ahead"])
async def test_a_client_that_leaves_is_noticed_while_nothing_of_it_is_read(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(Presence, "watch_every_s", 0.02)
    _, writer = await door.connect()
    size = 8 * MEGABYTE
    if what == "upload":
        writer.write(request("/hold", "POST", content_length=str(size)) + bytes(size // 2))
    else:
        writer.write(request("/hold") * 2)
    await until(lambda: node.target.begun == 1 and only_connection(door).inlet.is_paused)
    reset(writer)
    await until(lambda: node.target.cancelled == 1 and node.replica.ongoing == 0)


async def test_a_body_that_comes_too_slowly_is_408(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "body_timeout_s", 0.2)
    node = await rig.node(App, max_ongoing=1)
    door = await rig.door(node)
    reader, writer = await door.connect()
    writer.write(request("/length", "POST", transfer_encoding="chunked"))
    answer = asyncio.create_task(read_answer(reader))
    while not answer.done():
        if not writer.is_closing():
            writer.write(b"1\r\nx\r\n")
        await asyncio.sleep(0.08)
    assert (await answer).status == 408
    assert b"bytes per second" in (await answer).body
    await until(lambda: node.replica.ongoing == 0)
    writer.close()


async def drip(door: Door, start: bytes) -> bytes:
    """Send `start`, then a byte at a time, until the server answers or closes."""
    reader, writer = await door.connect()
    answer = asyncio.create_task(reader.read())
    try:
        writer.write(start)
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait((answer,), timeout=0.02)
        return answer.result()
    finally:
        answer.cancel()
        writer.close()


async def test_clients_that_send_a_byte_at_a_time_hold_nobody_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Patience.head_timeout_s == 30.0
    monkeypatch.setattr(Patience, "head_timeout_s", 0.3)
    node = await rig.node(App, max_ongoing=1)
    door = await rig.door(node)
    body = request("/text", "POST", content_length="50000")
    bodies = [asyncio.create_task(drip(door, body)) for _ in range(5)]
    heads = [asyncio.create_task(drip(door, b"GET /text HTTP/1.1\r\n")) for _ in range(5)]
    await until(lambda: len(door.state.connections) == 10)
    for _ in range(50):
        assert (await ask(door, "/text")).status == 200
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*heads)
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers), answers
    # A request whose body is still coming takes no place in a replica.
    assert node.target.begun == 50
    for task in bodies:
        assert not task.done()
        task.cancel()
    await asyncio.wait(bodies)


def test_a_body_has_its_rate_in_every_window() -> None:
    progress = Progress(0.0)
    progress.begin_body()
    enough = 10 * MIN_BODY_BYTES_PER_S
    for second in range(1, 100):
        progress.on_body(second, enough // 10 + 1)
        assert progress.fault_of_body(second, 10.0) is None
    for second in range(100, 120):
        progress.on_body(second, 1)
    assert "rate" not in (fault := str(progress.fault_of_body(120.0, 10.0)))
    assert re.match(r"\d+ bytes of the request's body came in", fault)
    progress.restart(120.0)
    assert progress.fault_of_body(129.0, 10.0) is None
    assert "No byte" in str(progress.fault_of_body(130.0, 10.0))


# -- leave to send -----------------------------------------------------------------------------


async def test_no_leave_to_send_is_given_to_who_is_refused(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    door = await rig.door(node, max_queued_requests=1)
    held = [asyncio.create_task(ask(door, "/hold")) for _ in range(2)]
    await until(lambda: door.router.num_waiting == 1)
    reader, writer = await door.connect()
    writer.write(request("/length", "POST", content_length="5000000", expect="100-continue"))
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    node.target.gate.set()
    await asyncio.gather(*held)
    writer.close()


@pytest.mark.parametrize("path", ["/-/none", "/text"])
async def test_who_is_answered_without_its_body_does_not_go_on_behind_it(
    door: Door, path: str
) -> None:
    reader, writer = await door.connect()
    writer.write(request(path, "POST", content_length="40", expect="100-continue"))
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (
        200 if path == "/text" else 404,
        "close",
    )
    assert await asyncio.wait_for(reader.read(), 1) == b""
    writer.close()


async def test_leave_to_send_comes_when_the_handler_wants_the_body(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "body_timeout_s", 0.05)
    node = await rig.node(App, max_ongoing=1)
    door = await rig.door(node)
    held = asyncio.create_task(ask(door, "/hold"))
    await until(lambda: node.target.begun == 1)
    reader, writer = await door.connect()
    writer.write(request("/length", "POST", content_length="3", expect="100-continue"))
    # It waits in the queue, for longer than a body may keep us waiting.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    node.target.gate.set()
    assert (await read_answer(reader, head_only=True)).status == 100
    writer.write(b"abc")
    assert (await read_answer(reader)).status == 200
    await held
    writer.close()


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [b"", b"zzz\r\n"])
async def test_a_body_that_does_not_come_ends_also_while_the_server_stops(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    monkeypatch.setattr(Patience, "body_timeout_s", 0.05)
    monkeypatch.setattr(Ending, "linger_s", 0.05)
    node = await rig.node(App)
    door = await rig.door(node)
    reader, writer = await door.connect()
    writer.write(request("/length", "POST", transfer_encoding="chunked") + b"1\r\nx\r\n")
    await until(lambda: node.target.body_bytes == 1)
    only_connection(door).shutdown()
    writer.write(junk)
    assert (await read_answer(reader)).status == (400 if junk else 408)
    await until(lambda: node.replica.ongoing == 0 and not door.state.connections)
    writer.close()


async def test_a_server_that_stops_answers_one_more_request_of_an_idle_client(
    door: Door,
) -> None:
    reader, writer = await door.connect()
    writer.write(request("/text"))
    assert (await read_answer(reader)).headers.get("connection") is None
    only_connection(door).shutdown()
    writer.write(request("/text") * 2)
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    # One that asks nothing more is not waited for.
    reader, writer = await door.connect()
    await until(lambda: len(door.state.connections) == 1)
    only_connection(door).shutdown()
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()


async def test_a_server_that_stops_answers_all_that_was_sent_ahead(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request("/hold") + request("/text"))
    await until(lambda: node.target.begun == 1)
    only_connection(door).shutdown()
    node.target.gate.set()
    first, second = await read_answer(reader), await read_answer(reader)
    assert (first.headers.get("connection"), second.headers.get("connection")) == (None, "close")
    writer.close()


async def test_an_idle_connection_ends_without_a_reset(rig: Rig) -> None:
    door = await rig.door(await rig.node(App), options=HTTPOptions(keep_alive_timeout_s=0.05))
    reader, writer = await door.connect()
    writer.write(request("/text"))
    assert (await read_answer(reader)).status == 200
    await until(reader.at_eof)
    # It crossed our end on the way: no answer, and an end that it can tell from a failure.
    writer.write(request("/text"))
    await writer.drain()
    assert await reader.read() == b""
    assert reader.exception() is None
    writer.close()


# -- who is who --------------------------------------------------------------------------------


async def test_our_own_paths_are_matched_as_they_were_written(door: Door) -> None:
    assert (await ask(door, "/-/livez")).body == b"success"
    # What a guard in front of us takes for the application's is the application's.
    for path in ("/%2D/livez", "/%2d/metrics"):
        assert (await ask(door, path)).status == 500
    assert (await ask(door, "/-/%6Divez")).status == 404


@pytest.mark.parametrize("coding", ["gzip, chunked", "xchunked"])
async def test_codings_that_are_not_undone_are_refused(node: Node, door: Door, coding: str) -> None:
    answer = await ask(door, "/length", "POST", transfer_encoding=coding)
    assert (answer.status, answer.headers["connection"]) == (501, "close")
    assert node.target.begun == 0
