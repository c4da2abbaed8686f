"""`@ingress`: routes bound to the instance, other ASGI apps, factories, refusals."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from remora.deployment import deployment
from remora.errors import BackPressureError, DeploymentUnavailableError, RayServeException
from remora.ingress import ingress


class Item(BaseModel):
    a: int


def app_of(instance: Any) -> Any:
    return asyncio.run(instance.__remora_asgi_app__())


def ask(app: Any, path: str, method: str = "GET", **options: Any) -> httpx2.Response:
    async def asked() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def limit(q: int = 3) -> int:
    return q


def make_class() -> tuple[FastAPI, Any]:
    """An app and a class with a route of each kind, new for each test."""
    app = FastAPI()
    router = APIRouter(prefix="/r")

    class Base:
        value: int

        @app.get("/base/{n}")
        def base(self, n: int) -> list[int]:
            return [self.value, n]

    @app.get("/module")
    def module_level() -> str:
        return "module"

    class Api(Base):
        def __init__(self, value: int) -> None:
            self.value = value

        @app.get("/sync", status_code=201)
        def sync(self, n: int = 1) -> Item:
            return Item(a=n + self.value)

        @app.post("/items")
        async def items(self, item: Item, q: int = Depends(limit)) -> list[int]:
            return [item.a, q, self.value]

        @router.get("/routed")
        def routed(self) -> int:
            return self.value

        @app.get("/stream")
        async def stream(self) -> AsyncIterator[Item]:
            for n in range(2):
                yield Item(a=n + self.value)

        @app.get("/error")
        def error(self) -> None:
            raise HTTPException(418, "teapot")

    # A router that is included after its routes were written.
    app.include_router(router, prefix="/p")
    return app, ingress(app)(Api)


def test_methods_become_routes_of_the_instance() -> None:
    _, cls = make_class()
    app = app_of(cls(7))
    assert ask(app, "/sync?n=3").json() == {"a": 10}
    assert ask(app, "/sync").status_code == 201
    assert ask(app, "/items?q=9", "POST", json={"a": 1}).json() == [1, 9, 7]
    assert ask(app, "/items", "POST", json={"a": "x"}).status_code == 422
    assert ask(app, "/error").status_code == 418


def test_inherited_included_and_module_level_routes_work_side_by_side() -> None:
    _, cls = make_class()
    app = app_of(cls(7))
    assert ask(app, "/base/4").json() == [7, 4]
    assert ask(app, "/p/r/routed").json() == 7
    assert ask(app, "/module").json() == "module"


def test_generators_stream() -> None:
    _, cls = make_class()
    assert ask(app_of(cls(7)), "/stream").text.split() == ['{"a":7}', '{"a":8}']


def test_self_is_no_parameter_in_the_docs() -> None:
    _, cls = make_class()
    document = ask(app_of(cls(7)), "/openapi.json").json()
    operation = document["paths"]["/sync"]["get"]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["n"]
    assert {"/p/r/routed", "/base/{n}", "/module"} <= set(document["paths"])


def test_a_new_instance_takes_the_routes_over() -> None:
    _, cls = make_class()
    app_of(cls(1))
    assert ask(app_of(cls(2)), "/p/r/routed").json() == 2


SCRIPT = """
import sys
from fastapi import APIRouter, FastAPI
from remora.build.graph import build
from remora.deployment import deployment
from remora.ingress import ingress
app = FastAPI()
app.state.word = "hi"
router = APIRouter(prefix="/r")
@deployment
@ingress(app)
class Api:
    def __init__(self, value): self.value = value
    @router.get("/x")
    def x(self, n: int): return [app.state.word, self.value, n]
app.include_router(router)
sys.stdout.buffer.write(build(Api.bind(5)).deployments[0].code)
"""


@pytest.mark.slow
def test_class_and_app_of_a_script_travel_together_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    code = subprocess.run([sys.executable, str(script)], capture_output=True, check=True).stdout
    cls, args, kwargs = pickle.loads(code)
    assert ask(app_of(cls(*args, **kwargs)), "/r/x?n=2").json() == ["hi", 5, 2]


def test_the_class_can_still_be_used_as_it_is() -> None:
    _, cls = make_class()
    assert cls(3).sync(4) == Item(a=7)


def test_any_asgi_app_is_served_as_it_is() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("bare")(scope, receive, send)

    cls = ingress(bare)(type("C", (), {}))
    assert ask(app_of(cls()), "/x").text == "bare"

    async def home(_: Request) -> Response:
        return PlainTextResponse("starlette")

    cls = ingress(Starlette(routes=[Route("/x", home)]))(type("C", (), {}))
    assert ask(app_of(cls()), "/x").text == "starlette"


def build_app() -> FastAPI:
    app = FastAPI()

    @app.get("/x")
    def x() -> str:
        return "built"

    return app


def test_a_factory_is_called_for_each_instance() -> None:
    cls = ingress(build_app)(type("C", (), {}))
    first, second = app_of(cls()), app_of(cls())
    assert first is not second
    assert ask(first, "/x").json() == "built"


def test_without_a_class_there_is_one_that_only_serves_the_app() -> None:
    cls = ingress(build_app)()
    assert ask(app_of(deployment(cls).func_or_class()), "/x").json() == "built"


def test_the_class_may_build_the_app_after_its_constructor() -> None:
    class Late:
        def __init__(self, word: str) -> None:
            self.word = word

        async def __serve_build_asgi_app__(self) -> FastAPI:
            app = FastAPI()
            app.get("/x")(lambda: self.word)
            return app

    assert ask(app_of(ingress()(Late)("hi")), "/x").json() == "hi"


def test_a_builder_must_return_an_app() -> None:
    class Late:
        def __serve_build_asgi_app__(self) -> None:
            return None

    with pytest.raises(TypeError, match="None"):
        app_of(ingress()(Late)())
    with pytest.raises(TypeError, match="None"):
        app_of(ingress(lambda: None)(type("C", (), {}))())


def test_refuses_what_cannot_be_an_ingress() -> None:
    class WithCall:
        def __call__(self) -> None: ...

    def function() -> None: ...

    with pytest.raises(ValueError, match="__call__"):
        ingress(FastAPI())(WithCall)
    with pytest.raises(ValueError, match="class"):
        ingress(FastAPI())(function)
    with pytest.raises(ValueError, match="__serve_build_asgi_app__"):
        ingress()(type("C", (), {}))
    with pytest.raises(ValueError, match="below @deployment"):
        ingress(FastAPI())(deployment(type("C", (), {})))
    with pytest.raises(TypeError, match="ASGI"):
        ingress(3)  # type: ignore[arg-type]


def test_a_route_without_self_is_refused() -> None:
    app = FastAPI()

    class Api:
        @app.get("/x")
        def x() -> int:  # type: ignore[misc]
            return 1

    with pytest.raises(RayServeException, match="self"):
        ingress(app)(Api)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (BackPressureError(3, 2, 429, 1.2), 429, "2"),
        (BackPressureError(3, 2), 503, None),
        (DeploymentUnavailableError("app/D"), 503, None),
    ],
)
def test_overload_below_is_told_to_the_client(
    error: Exception, status: int, retry_after: str | None
) -> None:
    app = FastAPI()

    class Api:
        @app.get("/x")
        def x(self) -> None:
            raise error

    response = ask(app_of(ingress(app)(Api)()), "/x")
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
