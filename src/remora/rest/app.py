"""The routes: they read, ask the controller, and write; nothing is decided here.

Rules: runs no user code, keeps nothing. Errors become answers in
`problems.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from remora.build.submit import config_request
from remora.config_file import declaration
from remora.config_file.schema import json_schema
from remora.errors import ConfigError, ConfigFileError, RemoraError
from remora.rest.details import instance_details
from remora.rest.docs import docs_page, openapi
from remora.rest.guard import Guard, Rules, body_of, too_large
from remora.rest.problems import error_response, refusals
from remora.wire.control import ConfigRequest, InstanceStatus, Surroundings
from remora.wire.health import ControllerHealth
from remora.wire.plan import Plan
from remora.wire.releases import Release
from remora.wire.scaling import ScalingDetail

T = TypeVar("T")

_JSON = "application/json"
#: More than any machine has, and than any counter reaches.
_MAX_WHOLE = 2**31 - 1


class Control(Protocol):
    """What is asked of the controller."""

    async def status(self) -> InstanceStatus:
        """How everything is."""

    async def configs(self) -> dict[str, bytes]:
        """What was declared."""

    async def scaling(self) -> tuple[ScalingDetail, ...]:
        """How deployments are scaled."""

    async def health(self) -> ControllerHealth:
        """How the controller itself is."""

    async def submit(self, request: ConfigRequest) -> int:
        """Hand in a config."""

    async def plan(self, request: ConfigRequest) -> Plan:
        """What it would change."""

    async def delete(self, names: list[str]) -> None:
        """Begin to delete applications."""

    async def releases(self) -> list[Release]:
        """What was deployed when."""

    async def roll_back(self, number: int) -> int:
        """Go back to a release."""

    async def scale(self, app_name: str, deployment: str, num_replicas: int) -> None:
        """Set a number of replicas."""

    async def metrics(self) -> str:
        """What all processes count."""


#: Opens a connection to the controller, for one request.
Connect = Callable[[], AbstractAsyncContextManager[Control]]
_Handler = Callable[[Request, Control], Awaitable[Response]]


def make_app(connect: Connect, options: dict[str, Any], rules: Rules, version: str) -> Guard:
    """Make the ASGI app.

    Args:
        connect: reaches the controller.
        options: what the instance was started with, as `instance_details` takes it.
        rules: who may use it.
        version: of this package.
    """
    routes = _Routes(options, version)

    def route(path: str, *handlers: tuple[str, _Handler]) -> Route:
        by_method = dict(handlers)

        async def answer(request: Request) -> Response:
            try:
                # HEAD is answered as GET; the body is left out on the way.
                handler = by_method["GET" if request.method == "HEAD" else request.method]
                async with connect() as control:
                    return await handler(request, control)
            except RemoraError as error:
                return error_response(error)

        return Route(path, answer, methods=list(by_method))

    table = [
        route(
            "/api/serve/applications/",
            ("GET", routes.get),
            ("PUT", routes.put),
            ("DELETE", routes.delete),
        ),
        route("/api/v1/applications/{app}/deployments/{deployment}/scale", ("POST", routes.scale)),
        route("/api/ray/version", ("GET", routes.version)),
        route("/api/remora/plan", ("POST", routes.plan)),
        route("/api/remora/releases", ("GET", routes.releases)),
        route("/api/remora/rollback", ("POST", routes.rollback)),
        route("/metrics", ("GET", routes.metrics)),
        Route("/api/remora/schema", lambda _request: JSONResponse(json_schema())),
        Route("/openapi.json", lambda _request: JSONResponse(openapi(version))),
        Route("/docs", lambda _request: HTMLResponse(docs_page(openapi(version)))),
    ]
    methods = {each.path: each.methods or () for each in table}
    app = Starlette(routes=table, exception_handlers=refusals(methods))
    # A path with and without its slash is not the same, and nobody is sent elsewhere.
    app.router.redirect_slashes = False
    return Guard(app, rules)


class _Routes:
    """What each route does."""

    def __init__(self, options: dict[str, Any], version: str) -> None:
        self._options = options
        self._version = version

    async def get(self, request: Request, control: Control) -> Response:
        wanted = request.query_params.get("api_type")
        if wanted is not None and wanted.lower() not in ("imperative", "declarative"):
            raise ConfigError("api_type", wanted, "imperative or declarative")
        details = instance_details(
            await control.status(),
            await control.configs(),
            await control.scaling(),
            self._options,
            await control.health(),
            source=wanted.lower() if wanted is not None else None,
        )
        return JSONResponse(details)

    async def put(self, request: Request, control: Control) -> Response:
        body = await body_of(request)
        if body is None:
            return too_large(declaration.MAX_CONFIG_BYTES)
        await control.submit(await _config(body))
        return Response(status_code=200)

    async def plan(self, request: Request, control: Control) -> Response:
        body = await body_of(request)
        if body is None:
            return too_large(declaration.MAX_CONFIG_BYTES)
        plan = await _while_connected(request, control.plan(await _config(body)))
        if plan is None:
            # Nobody reads it.
            return Response(status_code=499)
        return Response(msgspec.json.encode(plan), media_type=_JSON)

    async def delete(self, _request: Request, control: Control) -> Response:
        status = await control.status()
        await control.delete(list(status.applications))
        return Response(status_code=200)

    async def scale(self, request: Request, control: Control) -> Response:
        given = await _json(request)
        num = _whole(given, "target_num_replicas")
        if num is None or len(given) != 1:
            raise ConfigError(
                "body",
                given,
                f'must be {{"target_num_replicas": n}} with n >= 0 and <= {_MAX_WHOLE}',
            )
        app, deployment = request.path_params["app"], request.path_params["deployment"]
        await control.scale(app, deployment, num)
        return JSONResponse({"message": f"{app}/{deployment} is scaled to {num} replicas."})

    async def version(self, _request: Request, control: Control) -> Response:
        status = await control.status()
        return JSONResponse(
            {
                # Of the API, as Ray counts it; clients refuse others.
                "version": "4",
                "remora_version": self._version,
                "ray_version": self._version,
                "ray_commit": "",
                "session_name": status.home,
            }
        )

    async def releases(self, _request: Request, control: Control) -> Response:
        found = await control.releases()
        told = [
            {**msgspec.to_builtins(each), "said": msgspec.json.decode(each.said)} for each in found
        ]
        return JSONResponse({"releases": told})

    async def rollback(self, request: Request, control: Control) -> Response:
        given = await _json(request)
        number = 0 if given == {} else _whole(given, "release")
        if number is None:
            raise ConfigError(
                "body", given, 'must be {"release": n}, or {} for the last one that worked'
            )
        return JSONResponse({"release": await control.roll_back(number)})

    async def metrics(self, _request: Request, control: Control) -> Response:
        return PlainTextResponse(await control.metrics(), media_type="text/plain; version=0.0.4")


def _whole(given: Any, key: str) -> int | None:
    """A whole number >= 0 that a JSON object has under a key, however it is written there."""
    value = given.get(key) if isinstance(given, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value <= _MAX_WHOLE:
        return None
    return int(value) if value == int(value) else None


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Do what takes long, and give up when the client leaves: None. The body is read."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _json(request: Request) -> Any:
    body = await body_of(request)
    if body is None:
        raise ConfigError("body", "…", f"at most {declaration.MAX_CONFIG_BYTES} bytes")
    return _decoded(body)


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigFileError([f"The body is not JSON: {error}"]) from None


async def _config(body: bytes) -> ConfigRequest:
    """Check a config and say where its code is.

    Raises:
        ConfigFileError: something in it is wrong.
    """
    config = declaration.parse(_decoded(body))
    # Reads the content of folders.
    return await asyncio.to_thread(config_request, config, "REST", place=Surroundings(), base=None)
