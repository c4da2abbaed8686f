"""What a handler is given and what it may return, header by header and kind by kind."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from tests.integration.http_client import ask
from tests.integration.rig import Door, Rig, until

from remora.config import HTTPOptions
from remora.core.snapshot import AppRoute, Snapshot
from remora.request_context import current
from remora.types import DeploymentID

pytestmark = pytest.mark.one_loop


class Tells:
    """Tells what it knows of its request."""

    async def __call__(self, request: Request) -> Any:
        context = current.get()
        assert context is not None
        return {
            "id": context.request_id,
            "model": context.multiplexed_model_id,
            "session": context.session_id,
            "trace": context.trace_context,
            "route": context.route,
            "has_deadline": context.deadline is not None,
            "body": (await request.body()).decode(),
            "headers": dict(request.headers),
            "query": dict(request.query_params),
            "client": request.client.host if request.client else None,
        }


class Nothing:
    def __call__(self) -> None:
        """Take nothing and return nothing."""


class TwoParameters:
    async def __call__(self, request: Request, other: int) -> str:
        return "never"


class Threads:
    def __init__(self) -> None:
        self.running = 0
        self.lock = threading.Lock()
        self.gate = threading.Event()

    def __call__(self, request: Request) -> str:
        with self.lock:
            self.running += 1
        self.gate.wait(5)
        return threading.current_thread().name


class Returns:
    async def __call__(self, request: Request) -> Any:
        what = request.url.path.strip("/")
        if what == "error":
            return ValueError("returned")
        if what == "redirect":
            return RedirectResponse("/x", 302)
        if what == "bytes":
            return b"\x00"
        if what == "text":
            return "é"
        return Response(status_code=204)


@pytest.fixture
async def door(rig: Rig) -> Door:
    return await rig.door(await rig.node(Tells), options=HTTPOptions(request_timeout_s=30))


async def told(door: Door, path: str = "/", **options: Any) -> dict[str, Any]:
    answer = await ask(door, path, **options)
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def test_the_request_is_whole(door: Door) -> None:
    seen = await told(door, "/a/b?x=1&y=%20z", method="POST", body=b"hi", X_Mine="yes")
    assert (seen["body"], seen["query"], seen["client"]) == (
        "hi",
        {"x": "1", "y": " z"},
        "127.0.0.1",
    )
    assert (seen["headers"]["x-mine"], seen["route"]) == ("yes", "/")


@pytest.mark.parametrize("name", ["x-request-id", "X-Request-ID", "X-REQUEST-ID"])
async def test_the_request_id_of_the_client_is_used_in_any_case(door: Door, name: str) -> None:
    headers: dict[str, Any] = {name: "mine"}
    answer = await ask(door, **headers)
    assert answer.headers["x-request-id"] == json.loads(answer.body)["id"] == "mine"
    assert json.loads(answer.body)["headers"]["x-request-id"] == "mine"


async def test_a_handler_finds_the_id_that_its_request_was_given_among_the_headers(
    door: Door,
) -> None:
    answer = await ask(door)
    seen = json.loads(answer.body)
    assert seen["headers"]["x-request-id"] == seen["id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (b"serve_multiplexed_model_id", "model"),
        (b"Serve-Multiplexed-Model-Id", "model"),
        (b"SERVE_MULTIPLEXED_MODEL_ID", "model"),
        (b"x-session-id", "session"),
        (b"X_Session_ID", "session"),
        (b"traceparent", "trace"),
    ],
)
async def test_headers_for_routing_are_known_in_any_case_with_dash_or_underscore(
    door: Door, name: bytes, field: str
) -> None:
    raw = await door.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%b: me\r\n\r\n" % name)
    assert json.loads(raw.partition(b"\r\n\r\n")[2])[field] == "me"


@pytest.mark.parametrize(
    ("header", "has_deadline"), [("5", True), ("0", False), ("-1", False), ("soon", True)]
)
async def test_the_header_for_a_time_limit_overrides_disables_or_is_ignored(
    door: Door, header: str, has_deadline: bool
) -> None:
    seen = await told(door, **{"x-request-timeout-seconds": header})
    assert seen["has_deadline"] == has_deadline


async def test_a_handler_without_parameters_is_called_with_nothing(rig: Rig) -> None:
    answer = await ask(await rig.door(await rig.node(Nothing)))
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"].startswith("text/plain")


async def test_a_handler_with_two_required_parameters_fails_at_the_call(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(await rig.door(await rig.node(TwoParameters)))
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert "its handler also requires other" in caplog.text


async def test_plain_handlers_run_in_as_many_threads_as_requests_may_be(rig: Rig) -> None:
    node = await rig.node(Threads, max_ongoing=4)
    door = await rig.door(node)
    asking = [asyncio.create_task(ask(door)) for _ in range(6)]
    await until(lambda: node.target.running == 4)
    node.target.gate.set()
    answers = await asyncio.gather(*asking)
    assert len({answer.body for answer in answers}) == 4


async def test_a_plain_handler_of_a_client_that_left_runs_to_its_end(rig: Rig) -> None:
    node = await rig.node(Threads, max_ongoing=1)
    door = await rig.door(node)
    _, writer = await door.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await until(lambda: node.target.running == 1)
    writer.transport.abort()
    await until(lambda: any(row[2] == 499 for row in door.counters.rows()))
    assert node.replica.ongoing == 1
    node.target.gate.set()
    await until(lambda: node.replica.ongoing == 0)


@pytest.mark.parametrize(
    ("what", "status", "content_type", "body"),
    [
        ("error", 200, "application/json", b'"returned"'),
        ("redirect", 302, None, b""),
        ("bytes", 200, "text/plain", b"\x00"),
        ("text", 200, "text/plain; charset=utf-8", "é".encode()),
        ("none", 204, None, b""),
    ],
)
async def test_what_a_handler_returns_is_its_answer(
    rig: Rig, what: str, status: int, content_type: str | None, body: bytes
) -> None:
    answer = await ask(await rig.door(await rig.node(Returns)), f"/{what}")
    assert (answer.status, answer.headers.get("content-type"), answer.body) == (
        status,
        content_type,
        body,
    )


async def test_an_unknown_path_says_where_the_routes_are(rig: Rig) -> None:
    node = await rig.node(Tells)
    door = await rig.door(node)
    apps = {
        "outer": AppRoute("outer", "/a", "App"),
        "inner": AppRoute("inner", "/a/b", "App"),
    }
    owners = {DeploymentID("App", name): rig.route(node) for name in apps}
    door.client.show(Snapshot(2, apps, owners))
    answer = await ask(door, "/nowhere")
    text = b"Path '/nowhere' not found. Ping http://.../-/routes for available routes."
    assert (answer.status, answer.body) == (404, text)
    found = {path: (await ask(door, path)).status for path in ("/a", "/a/", "/a/b/c", "/ab")}
    assert found == {"/a": 200, "/a/": 200, "/a/b/c": 200, "/ab": 404}
    assert [(await told(door, path))["route"] for path in ("/a/x", "/a/b", "/a/b/c", "/a/bc")] == [
        "/a",
        "/a/b",
        "/a/b",
        "/a",
    ]


async def test_the_access_log_and_the_counters_know_who_left(rig: Rig) -> None:
    class Waits:
        async def __call__(self) -> None:
            await asyncio.sleep(30)

    node = await rig.node(Waits)
    door = await rig.door(node)
    began = time.monotonic()
    _, writer = await door.connect()
    writer.write(b"GET /w HTTP/1.1\r\nhost: x\r\n\r\n")
    await until(lambda: node.replica.ongoing == 1)
    writer.transport.abort()
    log = rig.folder / "access-0.log"
    await until(lambda: log.exists() and " 499 " in log.read_text())
    assert [row[2] for row in door.counters.rows()] == [499]
    assert time.monotonic() - began < 5


async def test_a_returned_response_passes_unchanged(rig: Rig) -> None:
    class Own:
        async def __call__(self) -> Response:
            return PlainTextResponse("x", 201, {"x-a": "b"})

    answer = await ask(await rig.door(await rig.node(Own)))
    assert (answer.status, answer.headers["x-a"], answer.body) == (201, "b", b"x")
