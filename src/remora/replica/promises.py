"""What the user's code promises its callers (`@method`), as a replica tells its routers.

Routes of a FastAPI or Starlette app are told in their order, up to the last marked one: the
first that matches a request handles it, and so decides whether it may be repeated.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from remora.method import idempotent_methods, is_idempotent
from remora.replica.user_code import UserCode
from remora.wire.messages import Promises

Route = tuple[list[str], str, bool]


def promises_of(code: UserCode) -> Promises:
    """Find every mark in the user's object and its app."""
    target = code.target
    methods = idempotent_methods(target if inspect.isroutine(target) else type(target))
    return Promises(list(methods), _routes_of(code.asgi_app))


def _routes_of(app: Any) -> list[Route]:
    routes = list(_walk(getattr(app, "router", None), ""))
    last = max((i for i, route in enumerate(routes) if route[2]), default=-1)
    return routes[: last + 1]


def _walk(router: Any, prefix: str) -> Iterator[Route]:
    """Every route below a router, with its whole path, in the order in which they are tried."""
    for route in getattr(router, "routes", ()):
        # Newer FastAPI includes a router as one route, which refers to the original.
        included = getattr(route, "original_router", None)
        path = getattr(route, "path", None)
        if included is not None:
            context = getattr(route, "include_context", None)
            yield from _walk(included, prefix + getattr(context, "prefix", ""))
        elif not isinstance(path, str):
            continue
        elif getattr(getattr(route, "app", None), "router", None) is not None:
            # A mounted app: what it does not know is not handed on to the routes behind it.
            yield from _walk(route.app.router, prefix + path)
            yield [], _pattern(f"{prefix}{path}/{{path:path}}"), False
        elif hasattr(route, "endpoint"):
            endpoint = route.endpoint
            # One without methods is a WebSocket's: it answers no HTTP request.
            if methods := sorted(getattr(route, "methods", None) or ()):
                yield methods, _pattern(prefix + path), is_idempotent(endpoint)
        else:
            yield [], _pattern(f"{prefix}{path}/{{path:path}}"), False


def _pattern(path: str) -> str:
    from starlette.routing import compile_path

    return compile_path(path)[0].pattern
