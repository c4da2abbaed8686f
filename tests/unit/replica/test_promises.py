"""What marks in the user's code say of a request."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from remora.core.request.promises import is_repeatable
from remora.ingress import ingress
from remora.method import method
from remora.replica.promises import promises_of
from remora.replica.user_code import UserCode
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.messages import CallKind, Envelope, HttpHead, Promises


async def promises(cls: type) -> Promises:
    code = UserCode(DeploymentID("D"), cls())
    await code.start_asgi_app()
    found = promises_of(code)
    await code.destroy()
    return unpack(pack(found), Promises)


def http(verb: str, path: str, prefix: str = "") -> Envelope:
    head = HttpHead(verb, prefix + path, b"", b"", prefix, [])
    return Envelope("1", "a", "D", "__call__", CallKind.HTTP, http=head)


def handle_call(name: str) -> Envelope:
    return Envelope("1", "a", "D", name, CallKind.UNARY)


class Plain:
    @method(idempotent=True)
    def __call__(self) -> None: ...

    def add(self) -> None: ...


async def test_a_marked_call_covers_its_requests_and_its_calls() -> None:
    found = await promises(Plain)
    assert is_repeatable(found, http("POST", "/any"))
    assert is_repeatable(found, handle_call("__call__"))
    assert not is_repeatable(found, handle_call("add"))


async def test_without_marks_nothing_is_promised() -> None:
    @ingress(FastAPI())
    class Bare:
        def get(self) -> None: ...

    assert await promises(Bare) == Promises()


def sorted_app() -> FastAPI:
    app = FastAPI()
    inner = APIRouter(prefix="/inner")
    below = FastAPI()

    @app.post("/items/special")
    def special() -> None: ...

    @app.post("/items/{key}")
    @method(idempotent=True)
    def put(key: str) -> None: ...

    @app.delete("/items/{key}")
    def delete(key: str) -> None: ...

    @inner.post("/{number:int}")
    @method(idempotent=True)
    def numbered(number: int) -> None: ...

    @below.put("/x")
    @method(idempotent=True)
    def x() -> None: ...

    @app.websocket("/late")
    async def socket(socket: WebSocket) -> None: ...

    app.include_router(inner, prefix="/v1")
    app.mount("/below", below)

    @app.post("/below/y")
    @method(idempotent=True)
    def never_reached() -> None: ...

    @app.post("/late")
    @method(idempotent=True)
    def late() -> None: ...

    return app


@pytest.mark.parametrize(
    ("verb", "path", "expected"),
    (
        ("POST", "/items/7", True),
        ("POST", "/items/special", False),
        ("DELETE", "/items/7", False),
        ("POST", "/v1/inner/7", True),
        ("POST", "/v1/inner/x", False),
        ("POST", "/inner/7", False),
        ("PUT", "/below/x", True),
        ("POST", "/below/y", False),
        ("POST", "/late", True),
        ("POST", "/items/7/more", False),
    ),
)
@pytest.mark.parametrize("prefix", ("", "/app"))
async def test_the_route_that_answers_a_request_decides(
    verb: str, path: str, expected: bool, prefix: str
) -> None:
    @ingress(sorted_app())
    class App: ...

    assert is_repeatable(await promises(App), http(verb, path, prefix)) is expected


async def test_methods_of_a_class_are_routes_as_well() -> None:
    app = FastAPI()

    @ingress(app)
    class App:
        @app.post("/twice")
        @method(idempotent=True)
        def twice(self) -> None: ...

    found = await promises(App)
    assert is_repeatable(found, http("POST", "/twice"))
    assert is_repeatable(found, handle_call("twice"))
    assert not is_repeatable(found, http("POST", "/once"))


async def test_routes_of_starlette_count_and_foreign_apps_below_hide_what_is_behind() -> None:
    @method(idempotent=True)
    async def marked(_request: Any) -> Any:
        return PlainTextResponse("x")

    async def foreign(scope: Any, receive: Any, send: Any) -> None: ...

    app = Starlette(
        routes=[
            Mount("/foreign", foreign),
            Route("/foreign/x", marked, methods=["POST"]),
            Route("/x", marked, methods=["POST"]),
        ]
    )

    @ingress(app)
    class App: ...

    found = await promises(App)
    assert is_repeatable(found, http("POST", "/x"))
    assert not is_repeatable(found, http("POST", "/foreign/x"))
