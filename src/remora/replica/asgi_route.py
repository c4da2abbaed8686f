"""Which route of an ASGI app a request took, as its template: what logs and metrics can group by.

Rules: pure; knows what Starlette and FastAPI leave in the scope, imports neither.
"""

from __future__ import annotations

from typing import Any


def route_template(scope: dict[str, Any], root_path: str) -> str:
    """The path template of the matched route, with what it is mounted below; "" when none matched.

    Args:
        scope: as the app has left it.
        root_path: what it was given.
    """
    route = scope.get("route")
    # FastAPI keeps what an included router adds to a path beside the route.
    context = (scope.get("fastapi") or {}).get("effective_route_context")
    if context is not None and route is not None and context.original_route is route:
        route = context
    mounted = str(scope.get("root_path", ""))[len(root_path) :]
    if getattr(route, "endpoint", None) is None:
        # None matched, or a mount whose app has no routes (files, for example).
        return mounted
    return mounted + str(getattr(route, "path", ""))
