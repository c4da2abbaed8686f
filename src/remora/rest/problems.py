"""What the REST API answers when something is wrong: always JSON, always of one shape.

    {"error": "what is wrong", "hint": "what to do", "problems": ["each of several"]}

`hint` may be empty where the error says it already; `problems` is empty but for configs.

Rules: the one place where an error of ours becomes an answer. What is said is worked out in pure
functions.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from remora.errors import (
    ConfigError,
    ConfigFileError,
    ExternalScalerDisabledError,
    InstanceError,
    PlacementError,
    ReleaseError,
    RemoraError,
    RouteTakenError,
    UnknownTargetError,
)

_WHAT_IT_WOULD_CHANGE = "POST /api/remora/plan says what a config would change."
#: How errors are answered, and what helps; the first that fits.
_ANSWERS: tuple[tuple[type[RemoraError], int, str], ...] = (
    (RouteTakenError, 409, _WHAT_IT_WOULD_CHANGE),
    (PlacementError, 409, _WHAT_IT_WOULD_CHANGE),
    (ReleaseError, 404, "GET /api/remora/releases lists the releases."),
    (UnknownTargetError, 404, "GET /api/serve/applications/ lists what there is."),
    (
        ExternalScalerDisabledError,
        412,
        "Set external_scaler_enabled: true in the application's config to scale it from outside.",
    ),
    (ConfigFileError, 400, "GET /api/remora/schema has the JSON Schema of a config."),
    (ConfigError, 400, "GET /openapi.json describes what each route takes."),
    (InstanceError, 503, "Try again in a second, unless the instance was shut down."),
)
#: A path that resembles none of the routes more than this leads to no guess.
_LIKENESS = 0.5


def problem(
    status: int,
    error: str,
    hint: str = "",
    *,
    problems: Collection[str] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Answer that something is wrong.

    Args:
        status: of HTTP.
        error: what is wrong, for people.
        hint: what to do; empty: `error` says it.
        problems: each of several, with its place.
        headers: of the answer.
    """
    body = {"error": error, "hint": hint, "problems": list(problems)}
    return JSONResponse(body, status_code=status, headers=headers)


def error_response(error: RemoraError) -> JSONResponse:
    """Answer an error of ours."""
    fitting = (each for each in _ANSWERS if isinstance(error, each[0]))
    _, status, hint = next(fitting, (RemoraError, error.http_status, ""))
    problems = error.problems if isinstance(error, ConfigFileError) else ()
    return problem(status, error.message, hint, problems=problems)


def refusals(routes: Mapping[str, Collection[str]]) -> dict[Any, Any]:
    """Make the handlers of what is no route, and of what nobody expected.

    Args:
        routes: the methods of each path, in which `{…}` stands for a part that is free.
    """

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NOT_FOUND:
            found = f"There is no {request.url.path!r} here."
            return problem(404, found, path_hint(request.url.path, routes))
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
            found = f"{request.url.path!r} does not take {request.method}."
            hint = f"It takes {', '.join(allowed)}."
            return problem(405, found, hint, headers={"allow": ", ".join(allowed)})
        return problem(error.status_code, error.detail, headers=error.headers)

    async def crash(_request: Request, error: Exception) -> Response:
        # The server logs it when this is sent.
        what = f"{type(error).__name__} in the REST API itself: this is a bug in Remora."
        return problem(500, what, "admin.log of the instance has its traceback; please report it.")

    return {HTTPException: refuse, Exception: crash}


def path_hint(path: str, routes: Mapping[str, Collection[str]]) -> str:
    """Say which path was probably meant, or where all of them are listed. Pure."""
    filled = {_filled(route, path): route for route in routes}
    close = difflib.get_close_matches(path, filled, n=1, cutoff=_LIKENESS)
    if not close:
        return "GET /openapi.json lists all paths, and /docs does so for people."
    methods = ", ".join(sorted(routes[filled[close[0]]]))
    return f"Did you mean {close[0]!r}? It takes {methods}. /docs lists all paths."


def _filled(route: str, path: str) -> str:
    """A route with what a path has in the free places."""
    wanted, given = route.split("/"), path.split("/")
    return "/".join(
        given[index] if part.startswith("{") and index < len(given) and given[index] else part
        for index, part in enumerate(wanted)
    )
