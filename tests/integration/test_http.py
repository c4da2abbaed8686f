"""The front door end to end: handlers of every kind, limits, disconnects, bad clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from tests.integration.http_client import ask, read_answer, request
from tests.integration.rig import Door, Node, Rig, until

from remora.config import HTTPOptions
from remora.core.snapshot import Snapshot
from remora.errors import RequestCancelledError
from remora.proxy import limits
from remora.proxy.connection import ClientConnection
from remora.proxy.ending import Ending
from remora.proxy.patience import Patience
from remora.replica.work import Work
from remora.router.call import CallState
from remora.transport.membership import Membership, join
from remora.types import NodeID

MEGABYTE = 1024 * 1024


class Plain:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.stopped = 0
        self.order: list[str] = []
        self.made = 0
        self.got = 0

    async def __call__(self, request: Request) -> Any:
        self.order.append(request.url.path)
        handler = getattr(self, "on_" + request.url.path.strip("/").split("/")[0])
        self.running += 1
        try:
            return await handler(request)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.running -= 1

    async def on_text(self, request: Request) -> Any:
        return "text"

    async def on_bytes(self, request: Request) -> Any:
        return b"\x00\xff"

    async def on_large(self, request: Request) -> Any:
        return bytes(3 * MEGABYTE)

    async def on_none(self, request: Request) -> Any:
        return None

    async def on_json(self, request: Request) -> Any:
        return {"n": [1, 2.5, None, "é"]}

    async def on_response(self, request: Request) -> Any:
        return JSONResponse({"a": 1}, 201, headers={"x-mine": "yes"})

    async def on_odd(self, request: Request) -> Any:
        return object()

    async def on_fail(self, request: Request) -> Any:
        raise RuntimeError("the secret is 42")

    async def on_refuse(self, request: Request) -> Any:
        raise HTTPException(418, "a teapot", headers={"x-pot": "tea"})

    async def on_badrefuse(self, request: Request) -> Any:
        raise HTTPException(418, object())

    async def on_cancelled(self, request: Request) -> Any:
        raise RequestCancelledError("its child")

    async def on_cancels(self, request: Request) -> Any:
        raise asyncio.CancelledError

    async def on_badheader(self, request: Request) -> Any:
        return JSONResponse({}, headers={"x-bad": "a\r\nset-cookie: evil=1"})

    async def on_badstatus(self, request: Request) -> Any:
        return JSONResponse({}, status_code=999)

    async def on_echo(self, request: Request) -> Any:
        return await request.body()

    async def on_length(self, request: Request) -> Any:
        async for part in request.stream():
            self.got += len(part)
        return str(self.got)

    async def on_ignore(self, request: Request) -> Any:
        await self.gate.wait()
        return "ignored"

    async def on_hold(self, request: Request) -> Any:
        await self.gate.wait()
        return request.url.path

    async def on_stream(self, request: Request) -> Any:
        async def parts() -> AsyncIterator[bytes]:
            try:
                for i in range(3):
                    yield b"%d," % i
                if "hold" in request.query_params:
                    await self.gate.wait()
                if "fail" in request.query_params:
                    raise RuntimeError("mid-stream")
            except (asyncio.CancelledError, GeneratorExit):
                self.order.append("closed")
                raise

        return StreamingResponse(parts())

    async def on_flood(self, request: Request) -> Any:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                self.made += 65536
                yield bytes(65536)

        return StreamingResponse(parts())

    async def on_short(self, request: Request) -> Any:
        async def parts() -> AsyncIterator[bytes]:
            yield b"abc"

        return StreamingResponse(parts(), headers={"content-length": "10"})


class AsyncGen:
    async def __call__(self) -> AsyncIterator[str]:
        for i in range(3):
            yield f"{i};"


class PlainGen:
    def __call__(self) -> Any:
        yield "a"
        yield b"b"


class LargeGen:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Any:
        while True:
            self.made += MEGABYTE
            yield bytes(MEGABYTE)


class PlainDef:
    def __call__(self, request: Request) -> Any:
        return {"body": len(request._body), "method": request.method}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"model": "ready"}


class Fast:
    def __init__(self) -> None:
        self.app = FastAPI(lifespan=lifespan)
        self.held = self.stopped = 0

        @self.app.get("/state")
        async def state(request: Request) -> Any:
            return {"model": request.state.model}

        @self.app.post("/sum")
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

        @self.app.get("/fail")
        async def fail() -> None:
            raise RuntimeError("the secret is 42")

        @self.app.get("/hold")
        async def hold() -> None:
            self.held += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.stopped += 1
                raise

    def __remora_asgi_app__(self) -> Any:
        return self.app


@pytest.fixture
async def node(rig: Rig) -> Node:
    return await rig.node(Plain)


@pytest.fixture
async def door(rig: Rig, node: Node) -> Door:
    return await rig.door(node)


@pytest.mark.parametrize(
    ("path", "status", "kind", "body"),
    [
        ("/text", 200, "text/plain; charset=utf-8", b"text"),
        ("/bytes", 200, "text/plain", b"\x00\xff"),
        ("/none", 200, "text/plain", b""),
        ("/json", 200, "application/json", b'{"n":[1,2.5,null,"\\u00e9"]}'),
        ("/response", 201, "application/json", b'{"a":1}'),
        ("/stream", 200, None, b"0,1,2,"),
        ("/refuse", 418, "application/json", b'{"detail":"a teapot"}'),
        ("/odd", 500, "text/plain; charset=utf-8", b"Internal Server Error"),
        ("/fail", 500, "text/plain; charset=utf-8", b"Internal Server Error"),
        ("/badrefuse", 500, "text/plain; charset=utf-8", b"Internal Server Error"),
        ("/badheader", 500, "text/plain; charset=utf-8", b"Internal Server Error"),
        ("/badstatus", 500, "text/plain; charset=utf-8", b"Internal Server Error"),
    ],
)
async def test_answers_of_a_plain_handler(
    node: Node, door: Door, path: str, status: int, kind: str | None, body: bytes
) -> None:
    answer = await ask(door, path)
    assert (answer.status, answer.headers.get("content-type"), answer.body) == (status, kind, body)
    length = None if path == "/stream" else str(len(body))
    assert answer.headers.get("content-length") == length
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
        answer.headers["x-request-id"],
    )
    await until(lambda: node.replica.ongoing == 0)


async def test_headers_of_handlers_arrive(door: Door) -> None:
    assert (await ask(door, "/response")).headers["x-mine"] == "yes"
    assert (await ask(door, "/refuse")).headers["x-pot"] == "tea"


@pytest.mark.parametrize("path", ("/cancelled", "/cancels"))
async def test_a_handler_that_cancels_itself_is_answered(node: Node, door: Door, path: str) -> None:
    answer = await ask(door, path)
    assert answer.status in (499, 500)
    assert "x-request-id" in answer.headers
    assert node.replica.ongoing == 0


async def test_large_answers_are_whole(door: Door) -> None:
    assert (await ask(door, "/large")).body == bytes(3 * MEGABYTE)


async def test_head_has_no_body_and_the_same_head(door: Door) -> None:
    for path in ("/text", "/stream", "/-/healthz", "/-/nowhere", "/fail"):
        reader, writer = await door.connect()
        writer.write(request(path, "HEAD") + request("/text"))
        first = await read_answer(reader, head_only=True)
        assert first.status == {"/-/nowhere": 404, "/fail": 500}.get(path, 200)
        assert (await read_answer(reader)).body == b"text"
        writer.close()


@pytest.mark.parametrize(("code", "expected"), [(AsyncGen, b"0;1;2;"), (PlainGen, b"ab")])
async def test_generator_handlers_stream(rig: Rig, code: Any, expected: bytes) -> None:
    door = await rig.door(await rig.node(code))
    answer = await ask(door)
    assert (answer.body, answer.headers["transfer-encoding"]) == (expected, "chunked")


@pytest.mark.parametrize("size", (0, 10, 200_000))
async def test_a_plain_def_finds_its_body_read(rig: Rig, size: int) -> None:
    door = await rig.door(await rig.node(PlainDef))
    answer = await ask(door, "/", "POST", bytes(size))
    assert json.loads(answer.body) == {"body": size, "method": "POST"}


async def test_fastapi_app_with_lifespan_state(rig: Rig) -> None:
    node = await rig.node(Fast)
    door = await rig.door(node)
    assert json.loads((await ask(door, "/state")).body) == {"model": "ready"}
    posted = await ask(door, "/sum", "POST", b"[1,2,3]", content_type="application/json")
    assert posted.body == b"6"
    assert (await ask(door, "/sum", "POST", b"[1", content_type="application/json")).status == 422
    assert (await ask(door, "/none")).status == 404
    failed = await ask(door, "/fail")
    assert (failed.status, b"secret" in failed.body) == (500, False)


async def test_request_ids_come_back_everywhere(door: Door) -> None:
    for path in ("/text", "/fail", "/stream", "/-/healthz", "/-/livez", "/-/routes", "/-/none"):
        answer = await ask(door, path, x_request_id="my-id-7")
        assert answer.headers["x-request-id"] == "my-id-7", path
    door.client.show(Snapshot(2))
    answer = await ask(door, "/text", x_request_id="my-id-8")
    assert (answer.status, answer.headers["x-request-id"]) == (404, "my-id-8")


async def test_an_application_that_is_being_deleted_says_so(door: Door) -> None:
    door.client.show(Snapshot(2, {}, {}, {"/gone": "shop"}))
    answer = await ask(door, "/gone/by")
    assert answer.status == 503
    assert b"'shop' is being deleted" in answer.body
    assert (await ask(door, "/gone-by")).status == 404


async def test_system_paths(rig: Rig) -> None:
    node = await rig.node(Plain)
    door = await rig.door(node)
    with_application = door.client.snapshot
    door.client.show(Snapshot(2))

    async def asked() -> list[tuple[int, bytes]]:
        answers = [await ask(door, f"/-/{path}") for path in ("livez", "healthz", "routes")]
        return [(answer.status, answer.body) for answer in answers]

    text = b"Route table is not populated yet."
    assert await asked() == [(200, b"success"), (503, text), (503, text)]
    door.client.show(with_application)
    assert await asked() == [(200, b"success"), (200, b"success"), (200, b'{"/":"default"}')]
    # Once ready, it stays so: no application is a state that one may want.
    door.client.show(Snapshot(3))
    assert await asked() == [(200, b"success"), (200, b"success"), (200, b"{}")]


async def test_while_the_instance_ends_the_door_is_unhealthy_and_knows_no_404(rig: Rig) -> None:
    door = await rig.door(await rig.node(Plain))
    assert (await ask(door, "/-/healthz")).status == 200
    door.client.show(Snapshot(2, ending=True))
    text = b"The instance is shutting down."
    for path in ("/-/healthz", "/text"):
        answer = await ask(door, path)
        assert (answer.status, answer.body) == (503, text)
    assert (await ask(door, "/-/livez")).status == 200


async def test_a_door_on_a_node_that_drains_is_unhealthy_and_serves(rig: Rig) -> None:
    door = await rig.door(await rig.node(Plain))
    known = door.client.snapshot
    try:
        join(Membership("here"))
        for draining, status, body in (
            (("there",), 200, b"success"),
            (
                ("here", "there"),
                503,
                b"This node is being drained: it is about to be taken away.",
            ),
        ):
            nodes = tuple(map(NodeID, draining))
            door.client.show(msgspec.structs.replace(known, version=2, draining=nodes))
            answer = await ask(door, "/-/healthz")
            assert (answer.status, answer.body) == (status, body)
            assert (await ask(door, "/text")).status == 200
            assert (await ask(door, "/-/livez")).status == 200
    finally:
        join(Membership())


# -- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (1, 65_536, 65_537, 2 * MEGABYTE))
async def test_bodies_are_echoed(door: Door, size: int) -> None:
    body = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    assert (await ask(door, "/echo", "POST", body[:size])).body == body[:size]


@pytest.mark.parametrize("cut", (1, 1000, 300_000))
async def test_chunked_uploads_are_whole(door: Door, cut: int) -> None:
    body = b"0123456789" * 60 if cut < 100 else bytes(MEGABYTE)
    reader, writer = await door.connect()
    writer.write(request("/length", "POST", transfer_encoding="chunked"))
    for start in range(0, len(body), cut):
        part = body[start : start + cut]
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    assert (await read_answer(reader)).body == str(len(body)).encode()
    writer.write(request("/text"))
    assert (await read_answer(reader)).body == b"text"
    writer.close()


async def test_an_upload_that_nobody_reads_stops_at_the_client(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    total = 64 * MEGABYTE
    writer.write(request("/ignore", "POST", content_length=str(total)))
    sent = 0
    block = bytes(256 * 1024)
    with pytest.raises(TimeoutError):  # noqa: PT012 - which write blocks is the kernel's choice
        while sent < total:
            writer.write(block)
            sent += len(block)
            await asyncio.wait_for(writer.drain(), 0.2)
    # Socket buffers of the kernel take some; the proxy and the replica take almost nothing.
    assert sent < 16 * MEGABYTE
    node.target.gate.set()
    assert (await read_answer(reader)).body == b"ignored"
    writer.close()
    await until(lambda: node.replica.ongoing == 0)


@pytest.mark.parametrize("framing", ("length", "chunked", "one chunk"))
async def test_bodies_above_the_limit_are_refused(rig: Rig, framing: str) -> None:
    node = await rig.node(Plain)
    door = await rig.door(node, options=HTTPOptions(max_body_bytes=100_000))
    assert (await ask(door, "/echo", "POST", bytes(100_000))).status == 200
    reader, writer = await door.connect()
    if framing == "length":
        writer.write(request("/echo", "POST", bytes(100_001)))
    else:
        size = 100_001 if framing == "one chunk" else 60_000
        writer.write(request("/echo", "POST", transfer_encoding="chunked"))
        for _ in range(1 if framing == "one chunk" else 2):
            writer.write(b"%x\r\n%b\r\n" % (size, bytes(size)))
        writer.write(b"0\r\n\r\n")
    answer = await read_answer(reader)
    assert answer.status == 413
    assert "x-request-id" in answer.headers
    assert b"max_body_bytes=100000" in answer.body
    writer.close()
    await until(lambda: node.replica.ongoing == 0)


async def test_continue_is_said_to_who_waits_for_it(door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request("/echo", "POST", content_length="3", expect="100-continue"))
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100")
    writer.write(b"abc")
    assert (await read_answer(reader)).body == b"abc"
    writer.close()


# -- streams -----------------------------------------------------------------------------------


def waits_for_room(node: Node) -> bool:
    (work,) = [work for made in node.replica._connections for work in made._work.values()]
    return isinstance(work, Work) and work._window <= 0


async def test_a_client_that_does_not_read_stops_the_stream(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    reader._limit = 1  # type: ignore[attr-defined]
    writer.write(request("/flood"))
    await until(lambda: door.state.connections)
    (connection,) = door.state.connections
    # The proxy's client takes nothing more, so the replica has no room to send into.
    await until(lambda: connection.is_write_paused and waits_for_room(node))  # type: ignore[union-attr]
    assert 0 < node.target.made < 24 * MEGABYTE
    assert (await ask(door, "/text")).body == b"text"
    writer.transport.abort()
    await until(lambda: node.replica.ongoing == 0)


async def test_a_plain_generator_is_only_so_many_bytes_ahead(rig: Rig) -> None:
    node = await rig.node(LargeGen)
    door = await rig.door(node)
    reader, writer = await door.connect()
    reader._limit = 1  # type: ignore[attr-defined]
    writer.write(request("/"))
    await until(lambda: door.state.connections)
    (connection,) = door.state.connections
    await until(lambda: connection.is_write_paused and waits_for_room(node))  # type: ignore[union-attr]
    made = -1
    while made != node.target.made:
        made = node.target.made
        await asyncio.sleep(0.1)
    assert made < 24 * MEGABYTE
    writer.transport.abort()
    await until(lambda: node.replica.ongoing == 0)


@pytest.mark.parametrize("path", ("/stream?fail=1", "/short"))
async def test_a_broken_stream_is_cut(door: Door, path: str) -> None:
    reader, writer = await door.connect()
    writer.write(request(path))
    data = b""
    try:
        while part := await asyncio.wait_for(reader.read(65536), 5):
            data += part
    except ConnectionResetError:
        pass
    assert not data.endswith(b"0\r\n\r\n")
    writer.close()


# -- who leaves, and when ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ("/hold", "/stream?hold=1"))
async def test_a_client_that_leaves_stops_its_handler_soon(
    node: Node, door: Door, path: str
) -> None:
    reader, writer = await door.connect()
    writer.write(request(path))
    if path == "/hold":
        await until(lambda: node.target.running == 1)
    else:
        await reader.readuntil(b"2,")
    began = time.perf_counter()
    writer.close()
    await until(lambda: node.replica.ongoing == 0)
    assert time.perf_counter() - began < 0.1
    assert node.target.stopped == 1 or "closed" in node.target.order
    await until(lambda: [row[2] for row in door.counters.rows()] == [499])


async def test_a_client_that_leaves_stops_an_asgi_app(rig: Rig) -> None:
    node = await rig.node(Fast)
    door = await rig.door(node)
    _, writer = await door.connect()
    writer.write(request("/hold"))
    await until(lambda: node.target.held == 1)
    writer.close()
    await until(lambda: node.target.stopped == 1 and node.replica.ongoing == 0)


async def test_a_client_that_leaves_while_it_waits_never_starts(rig: Rig) -> None:
    node = await rig.node(Plain, max_ongoing=1)
    door = await rig.door(node)
    _, first = await door.connect()
    first.write(request("/hold/1"))
    await until(lambda: node.target.running == 1)
    _, second = await door.connect()
    second.write(request("/hold/2"))
    await until(lambda: door.router.num_waiting == 1)
    second.close()
    await until(lambda: door.router.num_waiting == 0)
    first.close()
    await until(lambda: node.replica.ongoing == 0)
    assert node.target.order == ["/hold/1"]


async def test_work_goes_on_for_who_asked_for_that(node: Node, door: Door) -> None:
    _, writer = await door.connect()
    writer.write(request("/hold", x_request_disconnect_disabled="?1"))
    await until(lambda: node.target.running == 1)
    writer.close()
    await until(lambda: not door.state.connections)
    node.target.gate.set()
    await until(lambda: node.replica.ongoing == 0)
    assert node.target.stopped == 0


async def test_who_leaves_in_the_middle_of_a_body_is_not_waited_for(
    node: Node,
    door: Door,
) -> None:
    options: tuple[dict[str, Any], ...] = ({}, {"x_request_disconnect_disabled": "?1"})
    for headers in options:
        for size in ("1000", "1000000"):
            _, writer = await door.connect()
            writer.write(request("/echo", "POST", content_length=size, **headers) + b"abc")
            await until(lambda: door.state.connections)
            if size == "1000000":
                await until(lambda: node.target.running == 1)
            writer.close()
            await until(lambda: not door.state.connections)
            await until(lambda: node.replica.ongoing == 0)


async def test_time_that_is_up_cuts_a_stream(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request("/stream?hold=1", x_request_timeout_seconds="0.5"))
    assert (await reader.readuntil(b"2,")).startswith(b"HTTP/1.1 200 ")
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) in (b"", b"\r\n")
    await until(lambda: "closed" in node.target.order and node.replica.ongoing == 0)
    writer.close()


@pytest.mark.parametrize("how", ("header", "option"))
async def test_time_is_up_with_408(rig: Rig, how: str) -> None:
    node = await rig.node(Plain, max_ongoing=1)
    seconds = 0.05 if how == "option" else None
    door = await rig.door(node, options=HTTPOptions(request_timeout_s=seconds))
    headers: dict[str, Any] = {"x_request_timeout_seconds": "0.05"} if how == "header" else {}
    answer = await ask(door, "/hold", **headers)
    assert answer.status == 408
    assert "x-request-id" in answer.headers
    await until(lambda: node.target.stopped == 1 and node.replica.ongoing == 0)
    assert (await ask(door, "/text")).status == 200


async def test_a_header_overrides_the_option(rig: Rig) -> None:
    node = await rig.node(Plain)
    door = await rig.door(node, options=HTTPOptions(request_timeout_s=0.01))
    asyncio.get_running_loop().call_later(0.1, node.target.gate.set)
    assert (await ask(door, "/hold", x_request_timeout_seconds="5")).status == 200


@pytest.mark.parametrize(
    ("options", "status", "retry_after"),
    [
        ({}, 503, "1"),
        ({"backpressure_status": 429, "backpressure_retry_after_s": 2.5}, 429, "3"),
    ],
)
async def test_a_full_queue_is_refused(
    rig: Rig, options: dict[str, Any], status: int, retry_after: str
) -> None:
    node = await rig.node(Plain, max_ongoing=1)
    door = await rig.door(node, max_queued_requests=1, **options)
    held = [asyncio.create_task(ask(door, f"/hold/{i}")) for i in range(2)]
    await until(lambda: node.target.running == 1 and door.router.num_waiting == 1)
    refused = await ask(door, "/text")
    assert (refused.status, refused.headers["retry-after"]) == (status, retry_after)
    assert b"max_queued_requests is 1" in refused.body
    assert "x-request-id" in refused.headers
    node.target.gate.set()
    assert [answer.status for answer in await asyncio.gather(*held)] == [200, 200]


async def test_a_dead_replica_is_500_or_tried_again(rig: Rig) -> None:
    dying, heir = await rig.node(Plain), await rig.node(Plain)
    door = await rig.door(dying)
    get = asyncio.create_task(ask(door, "/hold/get"))
    post = asyncio.create_task(ask(door, "/hold/post", "POST", b"x"))
    await until(lambda: dying.target.running == 2)
    heir.target.gate.set()
    dying.die()
    door.router.update(rig.route(heir))
    assert (await get).body == b"/hold/get"
    failed = await post
    assert (failed.status, failed.body) == (500, b"Internal Server Error")


# -- bad clients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.0\r\nhost: x\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_malformed_requests_are_400_and_closed(node: Node, door: Door, data: bytes) -> None:
    answer = await door.raw(data)
    assert answer.startswith(b"HTTP/1.1 400")
    assert node.target.order == []
    assert (await ask(door, "/text")).status == 200


async def test_connect_is_refused_in_words(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "remora.proxy"):
        answer = await door.raw(b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 501")
    assert b"CONNECT is for proxies" in answer
    (text,) = [each.getMessage() for each in caplog.records if each.name == "remora.proxy"]
    assert re.match(r"Refused a request of 127\.0\.0\.1:\d+ with status 501", text)


async def test_a_malformed_body_ends_its_request(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ending, "linger_s", 0.05)
    reader, writer = await door.connect()
    writer.write(request("/length", "POST", transfer_encoding="chunked") + b"3\r\nabc\r\n")
    await until(lambda: node.target.got == 3)
    writer.write(b"not hex\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400")
    await until(lambda: node.replica.ongoing == 0)
    writer.close()


@pytest.mark.parametrize("at_once", (True, False))
@pytest.mark.parametrize("where", ("path", "header", "many"))
async def test_large_heads_are_431(node: Node, door: Door, where: str, at_once: bool) -> None:
    size = HTTPOptions().max_head_bytes + 10_000
    if where == "path":
        data = request("/text?" + "x" * size)
    elif where == "header":
        data = request("/text", x_large="x" * size)
    else:
        many: dict[str, Any] = {f"h{i}": "v" * 50 for i in range(size // 50)}
        data = request("/text", **many)
    reader, writer = await door.connect()
    for start in range(0, len(data), len(data) if at_once else 16_000):
        writer.write(data[start : start + (len(data) if at_once else 16_000)])
        await asyncio.sleep(0)
    try:
        answer = await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        answer = b"HTTP/1.1 431"
    assert answer.startswith(b"HTTP/1.1 431")
    assert node.target.order == []
    writer.close()


async def test_a_slow_head_is_408(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "head_timeout_s", 0.05)
    assert (await door.raw(b"GET /text HTTP/1.1\r\nho")).startswith(b"HTTP/1.1 408")
    # One that takes its time between two requests is none.
    reader, writer = await door.connect()
    for _ in range(2):
        writer.write(request("/text"))
        assert (await read_answer(reader)).status == 200
        await asyncio.sleep(0.12)
    writer.write(b"GET /te")
    assert (await read_answer(reader)).status == 408
    writer.close()


# -- several requests on one connection -----------------------------------------------------------


async def test_requests_sent_ahead_are_answered_in_order(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    paths = ["/hold/1", "/text", "/-/healthz", "/json", "/stream", "/hold/2", "/-/none"]
    writer.write(b"".join(map(request, paths)) + request("/echo", "POST", b"tail"))
    await until(lambda: node.target.running == 1)
    node.target.gate.set()
    answers = [await read_answer(reader) for _ in range(8)]
    assert [answer.body[:7] for answer in answers] == [
        b"/hold/1", b"text", b"success", b'{"n":[1', b"0,1,2,", b"/hold/2", b"Path '/", b"tail",
    ]  # fmt: skip
    writer.close()


@pytest.mark.parametrize("ask", [request("/-/healthz"), request("/-/healthz", "POST", b"x")])
async def test_more_requests_than_are_kept_are_all_answered(
    node: Node, door: Door, monkeypatch: pytest.MonkeyPatch, ask: bytes
) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS_AHEAD", 20)
    monkeypatch.setattr(limits, "PIECE_BYTES", 300)
    reader, writer = await door.connect()
    writer.write(request("/hold/1") + ask * 500 + request("/echo", "POST", b"y" * 70_000))
    await until(lambda: node.target.running == 1)
    (connection,) = cast(set[ClientConnection], door.state.connections)
    # Those of one more piece, at most.
    assert 20 <= len(connection._ahead) <= 20 + 300 // len(ask)
    node.target.gate.set()
    answers = [await read_answer(reader) for _ in range(502)]
    assert answers[0].body == b"/hold/1"
    assert {len(answer.body) for answer in answers[1:501]} == {len(answers[1].body)}
    assert answers[501].body == b"y" * 70_000
    writer.write(request("/text"))
    assert (await read_answer(reader)).body == b"text"
    writer.close()


async def test_time_that_is_up_for_a_request_sent_ahead_breaks_no_order(
    node: Node,
    door: Door,
) -> None:
    reader, writer = await door.connect()
    writer.write(
        request("/hold/1") + request("/hold/2", x_request_timeout_seconds="0.05") + request("/text")
    )
    await until(lambda: node.target.running == 1)
    (connection,) = cast(set[ClientConnection], door.state.connections)
    await until(lambda: connection._ahead[0].state is CallState.DONE)
    node.target.gate.set()
    answers = [await read_answer(reader) for _ in range(3)]
    assert (answers[0].status, answers[0].body) == (200, b"/hold/1")
    assert answers[1].status == 408
    assert (answers[2].status, answers[2].body) == (200, b"text")
    writer.close()
    await until(lambda: node.replica.ongoing == 0 and door.router.num_waiting == 0)


async def test_who_leaves_with_requests_sent_ahead_leaves_nothing(node: Node, door: Door) -> None:
    _, writer = await door.connect()
    late = request("/text", x_request_timeout_seconds="0.05")
    writer.write(request("/hold/1") + late * 5)
    await until(lambda: node.target.running == 1)
    (connection,) = cast(set[ClientConnection], door.state.connections)
    ahead = list(connection._ahead)
    writer.transport.abort()
    node.target.gate.set()
    # The answer that the gate lets go may come before the news that the client has left.
    await until(lambda: [(one.state, one._timer) for one in ahead] == [(CallState.DONE, None)] * 5)
    await until(lambda: node.replica.ongoing == 0)
    assert door.router.num_waiting == 0
    assert (await ask(door, "/text")).body == b"text"


async def test_old_clients_get_a_body_that_ends_with_the_connection(
    door: Door,
) -> None:
    data = await door.raw(b"GET /stream HTTP/1.0\r\n\r\n")
    head, body = data.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head
    assert body == b"0,1,2,"
