"""FastAPI and Starlette to their last feature, through a front door, a router and a replica."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    File,
    Form,
    HTTPException,
    Request,
    UploadFile,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from tests.integration.http_client import Answer, ask, read_answer, request
from tests.integration.rig import DEPLOYMENT, Door, Node, Rig, until

from remora.config import HTTPOptions
from remora.core.snapshot import AppRoute, Snapshot
from remora.errors import BackPressureError
from remora.ingress import ingress

pytestmark = pytest.mark.one_loop

PREFIX = "/shop"
METHODS = ["GET", "HEAD", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]
A_FILE: Any = File()
EVENTS: list[str] = []


class OutOfStockError(Exception):
    pass


class Item(BaseModel):
    name: str
    price: float = 1.5


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    EVENTS.append("startup")
    app.state.colour = "red"
    yield {"pool": ["connection"]}
    EVENTS.append("shutdown")


async def session() -> AsyncIterator[str]:
    EVENTS.append("open")
    try:
        yield "session"
    except OutOfStockError:
        EVENTS.append("rolled back")
        raise
    finally:
        EVENTS.append("closed")


def token(x_token: str = "none") -> str:
    if x_token == "bad":
        raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})
    return x_token


app = FastAPI(lifespan=lifespan, title="Shop")
app.add_middleware(GZipMiddleware, minimum_size=10_000)
app.add_middleware(CORSMiddleware, allow_origins=["http://friend"], allow_methods=["PUT"])
router = APIRouter(prefix="/routed", dependencies=[Depends(token)])
admin = FastAPI()


@app.exception_handler(OutOfStockError)
async def out_of_stock(_: Request, error: OutOfStockError) -> JSONResponse:
    return JSONResponse({"sold": str(error)}, 410)


@app.middleware("http")
async def stamp(request: Request, call_next: Any) -> Response:
    request.state.from_middleware = "hello"
    response: Response = await call_next(request)
    response.headers["x-stamp"] = request.state.from_middleware
    return response


@app.get("/module-level")
def module_level(request: Request) -> dict[str, str]:
    return {"middleware": request.state.from_middleware}


@router.get("/{name}")
async def routed(name: str, by: str = Depends(token)) -> list[str]:
    return [name, by]


@admin.get("/who/{name}")
async def who(name: str, request: Request) -> str:
    return f"{name} at {request.url.path}"


class Base:
    def __init__(self) -> None:
        self.name = "base"
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.seen: list[Any] = []

    @app.get("/inherited")
    async def inherited(self) -> str:
        return self.name


app.include_router(router)
app.mount("/admin", admin)
app.mount("/files", StaticFiles(directory=Path(__file__).parent))


@ingress(app)
class Shop(Base):
    def __init__(self) -> None:
        super().__init__()
        self.name = "shop"

    @app.get("/items/{item_id}", response_model=Item, status_code=203)
    async def item(self, item_id: int, q: str | None = None) -> dict[str, Any]:
        return {"name": f"{self.name} {item_id} {q}", "price": 2, "secret": 42}

    @app.post("/items")
    async def make(self, item: Item, session: str = Depends(session)) -> Item:
        EVENTS.append("handled")
        if item.name == "gone":
            raise OutOfStockError(item.name)
        return item

    @app.put("/form")
    async def form(self, a: str = Form(), upload: UploadFile = A_FILE) -> list[Any]:
        return [a, upload.filename, len(await upload.read())]

    @app.api_route("/any", methods=METHODS, include_in_schema=False)
    async def any(self, request: Request) -> str:
        return request.method

    @app.get("/state")
    async def state(self, request: Request) -> list[Any]:
        return [request.app.state.colour, request.state.pool]

    @app.get("/deep")
    async def deep(self) -> None:
        async def level(depth: int) -> None:
            if not depth:
                raise HTTPException(409, {"depth": "deep"}, {"x-depth": "3"})
            await level(depth - 1)

        await level(3)

    @app.get("/background")
    async def background(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(self.seen.append, "later")
        return "now"

    @app.get("/blocking")
    def blocking(self) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.gate.wait(5)
        with self.lock:
            self.running -= 1
        return self.most

    @app.get("/sse")
    async def sse(self) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for number in range(3):
                yield f"data: {number}\n\n"
                await asyncio.to_thread(self.gate.wait, 5)
                self.gate.clear()

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/sync-stream")
    def sync_stream(self) -> StreamingResponse:
        def parts() -> Iterator[bytes]:
            for number in range(5):
                yield b"%d" % number

        return StreamingResponse(parts())

    @app.get("/file")
    async def file(self) -> FileResponse:
        return FileResponse(__file__, filename="me.py")

    @app.get("/redirect")
    async def redirect(self) -> RedirectResponse:
        return RedirectResponse("/elsewhere", 303)

    @app.post("/chunks")
    async def chunks(self, request: Request) -> list[int]:
        async for chunk in request.stream():
            self.seen.append(bytes(chunk))
        return [len(part) for part in self.seen]

    @app.get("/busy")
    async def busy(self) -> None:
        raise BackPressureError(3, 2, 503, 1.5)

    @app.get("/large")
    async def large(self) -> PlainTextResponse:
        return PlainTextResponse("a" * 50_000)

    @app.get("/cookies")
    async def cookies(self, request: Request) -> Response:
        response = JSONResponse(request.cookies)
        response.set_cookie("a", "1")
        response.delete_cookie("b")
        return response

    @app.post("/embedded")
    async def embedded(self, a: int = Body(), b: int = Body()) -> int:
        return a + b


@pytest.fixture
async def node(rig: Rig) -> Node:
    EVENTS.clear()
    return await rig.node(Shop, max_ongoing=3)


@pytest.fixture
async def door(rig: Rig, node: Node) -> Door:
    return await at(rig, node)


async def at(rig: Rig, node: Node, prefix: str = PREFIX, root_path: str = "") -> Door:
    """A front door that serves a node below a prefix."""
    door = await rig.door(node, options=HTTPOptions(root_path=root_path))
    app_route = AppRoute("default", prefix, "App")
    door.client.show(Snapshot(2, {"default": app_route}, {DEPLOYMENT: rig.route(node)}))
    return door


async def get(door: Door, path: str, **options: Any) -> Answer:
    return await ask(door, PREFIX + path, **options)


def routes(door: Door) -> dict[str, int]:
    return {route: status for _, _, status, route, _, _ in door.counters.rows()}


async def test_methods_of_the_class_see_their_instance(door: Door) -> None:
    answer = await get(door, "/items/7?q=x")
    assert (answer.status, json.loads(answer.body)) == (203, {"name": "shop 7 x", "price": 2.0})


async def test_inherited_routes_see_the_instance_of_the_subclass(door: Door) -> None:
    assert (await get(door, "/inherited")).body == b'"shop"'


class SubShop(Shop):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


async def test_a_subclass_of_an_ingress_class_has_a_constructor_of_its_own(rig: Rig) -> None:
    door = await at(rig, await rig.node(SubShop, "sub"))
    assert (await get(door, "/inherited")).body == b'"sub"'
    assert b"sub 1 None" in (await get(door, "/items/1")).body


async def test_module_level_and_included_routes_work_beside_methods(
    door: Door,
) -> None:
    assert (await get(door, "/module-level")).body == b'{"middleware":"hello"}'
    assert (await get(door, "/routed/tea?x_token=me")).body == b'["tea","me"]'
    refused = await get(door, "/routed/tea?x_token=bad")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")


async def test_mounted_applications_and_files_are_served(door: Door) -> None:
    assert (await get(door, "/admin/who/me")).body == b'"me at /shop/admin/who/me"'
    assert b"FastAPI and Starlette" in (await get(door, "/files/test_fastapi.py")).body
    assert (await get(door, "/files/none.py")).status == 404


async def test_bodies_are_validated(door: Door) -> None:
    json_type = {"content_type": "application/json"}
    good = await get(door, "/items", method="POST", body=b'{"name":"tea"}', **json_type)
    assert good.body == b'{"name":"tea","price":1.5}'
    bad = await get(door, "/items", method="POST", body=b'{"name":1}', **json_type)
    assert bad.status == 422
    assert json.loads(bad.body)["detail"][0]["loc"] == ["body", "name"]
    both = await get(door, "/embedded", method="POST", body=b'{"a":1,"b":2}', **json_type)
    assert both.body == b"3"


async def test_forms_and_uploads_are_parsed(door: Door) -> None:
    body = (
        b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nb\r\n'
        b'--x\r\ncontent-disposition: form-data; name="upload"; filename="u.bin"\r\n\r\n'
        + bytes(200_000)
        + b"\r\n--x--\r\n"
    )
    form_type = {"content_type": "multipart/form-data; boundary=x"}
    answer = await get(door, "/form", method="PUT", body=body, **form_type)
    assert json.loads(answer.body) == ["b", "u.bin", 200_000]


async def test_dependencies_with_yield_are_closed_and_hear_of_failures(
    door: Door,
) -> None:
    json_type = {"content_type": "application/json"}
    EVENTS.clear()
    await get(door, "/items", method="POST", body=b'{"name":"tea"}', **json_type)
    await until(lambda: EVENTS == ["open", "handled", "closed"])
    EVENTS.clear()
    gone = await get(door, "/items", method="POST", body=b'{"name":"gone"}', **json_type)
    assert (gone.status, gone.body) == (410, b'{"sold":"gone"}')
    assert EVENTS == ["open", "handled", "rolled back", "closed"]


async def test_lifespan_runs_once_and_its_state_is_there(rig: Rig) -> None:
    EVENTS.clear()
    node = await rig.node(Shop)
    door = await at(rig, node)
    assert EVENTS == ["startup"]
    assert (await get(door, "/state")).body == b'["red",["connection"]]'
    await node.replica.stop()
    assert EVENTS == ["startup", "shutdown"]


async def test_middleware_and_cors_of_the_application_work(door: Door) -> None:
    answer = await get(door, "/inherited", origin="http://friend")
    assert answer.headers["x-stamp"] == "hello"
    assert answer.headers["access-control-allow-origin"] == "http://friend"
    asked = await get(
        door,
        "/inherited",
        method="OPTIONS",
        origin="http://friend",
        access_control_request_method="PUT",
    )
    assert (asked.status, asked.headers["access-control-allow-methods"]) == (200, "PUT")
    zipped = await get(door, "/large", accept_encoding="gzip")
    assert (zipped.headers["content-encoding"], len(zipped.body) < 1000) == ("gzip", True)


async def test_an_http_exception_at_any_depth_is_its_answer(door: Door) -> None:
    answer = await get(door, "/deep")
    assert (answer.status, answer.body) == (409, b'{"detail":{"depth":"deep"}}')
    assert answer.headers["x-depth"] == "3"


async def test_overload_of_a_deployment_below_is_503_with_retry_after(
    door: Door,
) -> None:
    answer = await get(door, "/busy")
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")


async def test_background_tasks_run_behind_the_answer(node: Node, door: Door) -> None:
    assert (await get(door, "/background")).body == b'"now"'
    await until(lambda: node.target.seen == ["later"])


@pytest.mark.parametrize("method", [method for method in METHODS if method != "HEAD"])
async def test_every_method_is_handed_on(door: Door, method: str) -> None:
    assert (await get(door, "/any", method=method)).body == f'"{method}"'.encode()


async def test_a_head_request_has_the_head_of_its_answer_alone(door: Door) -> None:
    answer = await get(door, "/any", method="HEAD")
    assert (answer.status, answer.headers["content-length"]) == (200, "6")
    assert (await get(door, "/any", method="BREW")).status in (400, 405)
    assert (await get(door, "/inherited", method="POST")).status == 405


async def test_plain_endpoints_run_in_as_many_threads_as_requests_may_be(
    node: Node,
    door: Door,
) -> None:
    asking = [asyncio.create_task(get(door, "/blocking")) for _ in range(3)]
    await until(lambda: node.target.running == 3)
    node.target.gate.set()
    assert {answer.body for answer in await asyncio.gather(*asking)} == {b"3"}


async def test_more_threads_than_usual_are_there_where_more_requests_may_be(rig: Rig) -> None:
    node = await rig.node(Shop, max_ongoing=60)
    door = await at(rig, node)
    asking = [asyncio.create_task(get(door, "/blocking")) for _ in range(60)]
    await until(lambda: node.target.running == 60)
    node.target.gate.set()
    await asyncio.gather(*asking)


async def test_sse_chunks_are_sent_as_they_are_produced(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request(PREFIX + "/sse"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"text/event-stream" in head
    for number in range(3):
        assert await reader.readline() == b"9\r\n"
        assert await reader.readexactly(11) == b"data: %d\n\n\r\n" % number
        node.target.gate.set()
    assert await reader.readexactly(5) == b"0\r\n\r\n"
    writer.close()


async def test_a_stream_of_a_plain_generator_is_whole(door: Door) -> None:
    assert (await get(door, "/sync-stream")).body == b"01234"


async def test_files_redirects_and_ranges_pass(door: Door) -> None:
    me = Path(__file__).read_bytes()
    answer = await get(door, "/file")
    assert answer.body == me
    assert answer.headers["content-disposition"] == 'attachment; filename="me.py"'
    part = await get(door, "/file", range="bytes=3-9")
    assert (part.status, part.body) == (206, me[3:10])
    moved = await get(door, "/redirect")
    assert (moved.status, moved.headers["location"]) == (303, "/elsewhere")


async def test_request_stream_gives_each_chunk_as_it_comes(node: Node, door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request(PREFIX + "/chunks", "POST", transfer_encoding="chunked"))
    for number, chunk in enumerate((b"one", b"three", b"seven")):
        writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await until(lambda n=number + 1: len(node.target.seen) == n)  # type: ignore[misc]
    writer.write(b"0\r\n\r\n")
    assert json.loads((await read_answer(reader)).body) == [3, 5, 5, 0]
    writer.close()


class Holds:
    def __init__(self) -> None:
        self.seen: list[bool] = []

    async def __call__(self, request: Request) -> None:
        self.seen.append(await request.is_disconnected())
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.seen.append(await request.is_disconnected())
            raise


async def test_is_disconnected_says_whether_the_client_is_there(rig: Rig) -> None:
    node = await rig.node(Holds)
    door = await rig.door(node)
    _, writer = await door.connect()
    writer.write(request("/"))
    await until(lambda: node.target.seen == [False])
    writer.transport.abort()
    await until(lambda: node.target.seen == [False, True])


async def test_cookies_pass_both_ways(door: Door) -> None:
    reader, writer = await door.connect()
    writer.write(request(PREFIX + "/cookies", cookie="x=1; y=2", connection="close"))
    answer = (await reader.read()).decode()
    assert answer.endswith('{"x":"1","y":"2"}')
    assert answer.count("set-cookie: ") == 2
    writer.close()


async def test_docs_are_served_below_the_prefix(door: Door) -> None:
    docs = await get(door, "/docs")
    assert (docs.status, b"/shop/openapi.json" in docs.body) == (200, True)
    schema = json.loads((await get(door, "/openapi.json")).body)
    assert schema["servers"] == [{"url": "/shop"}]
    parameters = schema["paths"]["/items/{item_id}"]["get"]["parameters"]
    assert [one["name"] for one in parameters] == ["item_id", "q"]


async def test_root_path_is_the_options_and_the_prefix_and_the_path_is_whole(rig: Rig) -> None:
    for prefix, outer, root in (("/", "", ""), ("/", "/out", "/out"), ("/a", "/out", "/out/a")):
        node = await rig.node(Scopes)
        door = await at(rig, node, prefix, outer)
        scope = json.loads((await ask(door, (prefix + "/x/y").replace("//", "/"))).body)
        assert scope == {"root_path": root, "path": f"{root}/x/y", "at": "/x/y"}


async def test_a_prefix_with_and_without_its_slash_reaches_the_application(rig: Rig) -> None:
    door = await at(rig, await rig.node(Scopes))
    for path in ("/shop", "/shop/"):
        answer = await ask(door, path)
        assert json.loads(answer.body)["path"] == path
    assert (await ask(door, "/shopping")).status == 404


async def test_a_trailing_slash_is_the_applications_to_redirect(door: Door) -> None:
    answer = await get(door, "/inherited/")
    assert (answer.status, answer.headers["location"]) == (307, "http://x/shop/inherited")


@ingress(None)
class Scopes:
    """A bare ASGI callable that tells its scope."""

    def __serve_build_asgi_app__(self) -> Any:
        return self.app

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("not spoken here")
        assert (await receive())["type"] == "http.request"
        answer = {name: scope[name] for name in ("root_path", "path")}
        answer["at"] = scope["path"].removeprefix(scope["root_path"])
        await JSONResponse(answer)(scope, receive, send)


async def starlette_item(request: Request) -> Response:
    return PlainTextResponse(request.path_params["name"])


def build_starlette() -> Starlette:
    inner = Starlette(routes=[Route("/{name}", starlette_item)])
    return Starlette(routes=[Route("/one/{name}", starlette_item), Mount("/in/{way}", inner)])


async def test_a_factory_and_a_starlette_application_are_served(rig: Rig) -> None:
    door = await at(rig, await rig.node(ingress(build_starlette)()))
    assert (await get(door, "/one/a")).body == b"a"
    assert (await get(door, "/in/b/c")).body == b"c"


async def test_metrics_and_the_access_log_have_the_route_and_not_the_path(
    door: Door, rig: Rig
) -> None:
    for path in (
        "/items/1",
        "/items/2",
        "/routed/tea",
        "/admin/who/me",
        "/files/rig.py",
        "/none",
        "/deep",
    ):
        await get(door, path)
    await ask(door, "/other")
    assert routes(door) == {
        "/shop/items/{item_id}": 203,
        "/shop/routed/{name}": 200,
        "/shop/admin/who/{name}": 200,
        "/shop/files": 200,
        "/shop": 404,
        "/shop/deep": 409,
        "": 404,
    }
    assert 'route="/shop/items/{item_id}",status_code="203"} 2' in door.counters.render()
    log = rig.folder / "access-0.log"
    await until(lambda: log.exists() and "/other" in log.read_text())
    lines = log.read_text().splitlines()
    assert lines[0].split()[4:7] == ["GET", "'/shop/items/1'", "203"]
    assert lines[0].endswith("ms /shop/items/{item_id}")


async def test_the_route_of_a_starlette_application_is_known(rig: Rig) -> None:
    node = await rig.node(ingress(build_starlette)())
    door = await at(rig, node, "/")
    for path in ("/one/a", "/in/b/c"):
        await ask(door, path)
    # What stands in the path of a mount itself cannot be told from a name.
    assert routes(door) == {"/one/{name}": 200, "/in/b/{name}": 200}


async def test_a_plain_deployment_has_its_prefix_as_its_route(rig: Rig) -> None:
    class Plain:
        async def __call__(self) -> str:
            return "x"

    door = await at(rig, await rig.node(Plain))
    await get(door, "/any/thing")
    assert routes(door) == {"/shop": 200}
