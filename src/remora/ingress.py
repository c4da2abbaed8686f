"""`@ingress(app)`: let a FastAPI or other ASGI app be the HTTP face of a deployment.

The decorated class gets one method, `__remora_asgi_app__`, which a replica calls after the
constructor to get the app of that very instance; the replica runs the app's lifespan and
feeds it requests. For FastAPI, methods decorated with `@app.get(...)` are bound to the
instance: their routes are made anew without `self` among the parameters, once per replica, so
that a request costs exactly what it costs without a class.

How the app travels: with the class. A class in an importable module is imported by the
replica, app and routes included; one of a script is pickled together with its app, as it is at
the time of `run`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from remora.deployment import INGRESS_MARK, Deployment
from remora.errors import BackPressureError, DeploymentUnavailableError, RemoraError

_C = TypeVar("_C", bound=type)

#: What starlette and FastAPI call an app: `app(scope, receive, send)`.
ASGIApp = Callable[..., Any]


def ingress(app: ASGIApp | Callable[[], ASGIApp] | None = None) -> Callable[..., Any]:
    """Make a class the HTTP face of an application.

    Args:
        app: a FastAPI app, whose routes may be methods of the class; any other ASGI app,
            served as it is; a function without parameters that builds one, called once in each
            replica; or None: the class has `__serve_build_asgi_app__(self)`, called after its
            constructor.

    Returns:
        A class decorator. Called without a class it returns a class that only serves the app.

    Raises:
        ConfigError: (when decorating, a `ValueError`) a function, a class with `__call__`, or
            a missing `__serve_build_asgi_app__`.
        RemoraError: a route's method takes no `self`.
    """
    if app is not None and not callable(app):
        raise TypeError(
            f"ingress() needs an ASGI app or a function that builds one, not {type(app).__name__}"
        )

    def decorate(cls: _C | None = None) -> _C:
        if cls is None:
            cls = cast(_C, type("ASGIIngress", (), {"__module__": __name__, "_only_the_app": True}))
        _check_class(cls, app)
        if app is not None and is_fastapi(app):
            for route in _routes(app):
                _check_route(cls, route)

        async def asgi_app(self: Any) -> ASGIApp:
            return await _app_of(self, cls, app)

        setattr(cls, INGRESS_MARK, True)
        setattr(cls, "__remora_asgi_app__", asgi_app)  # noqa: B010 - the type of cls is open
        return cls

    return decorate


def _check_class(cls: Any, app: object) -> None:
    if isinstance(cls, Deployment):
        raise ValueError(
            f"Put @ingress below @deployment: {cls.name!r} is a deployment already, and ingress "
            "decorates the class"
        )
    if not inspect.isclass(cls):
        raise ValueError(f"@ingress goes on a class, not on {cls!r}")
    if "__call__" in {name for base in cls.__mro__ for name in vars(base)}:
        raise ValueError(
            f"{cls.__qualname__} has __call__, which would never be reached: with @ingress the "
            "app handles the requests. Make it a route instead."
        )
    if app is None and not callable(getattr(cls, "__serve_build_asgi_app__", None)):
        raise ValueError(
            f"@ingress() without an app needs a method __serve_build_asgi_app__(self) in "
            f"{cls.__qualname__} that returns one"
        )


async def _app_of(instance: Any, cls: type, app: Any) -> ASGIApp:
    """Make the app of one instance; runs once in each replica, after the constructor."""
    if app is None:
        built = instance.__serve_build_asgi_app__()
        app = await built if inspect.isawaitable(built) else built
        if app is None:
            raise TypeError(
                f"{cls.__qualname__}.__serve_build_asgi_app__ returned None; it must return an "
                "ASGI app"
            )
    elif _is_factory(app):
        app = app()
        app = await app if inspect.isawaitable(app) else app
        if app is None:
            raise TypeError("the function given to ingress() returned None, not an ASGI app")
    elif is_fastapi(app):
        bind_routes(app, instance, cls)
    _add_error_handlers(app)
    return cast(ASGIApp, app)


def is_fastapi(app: object) -> bool:
    """Say whether this is a FastAPI app, without importing FastAPI for those who use none."""
    return any(
        base.__name__ == "FastAPI" and base.__module__.startswith("fastapi.")
        for base in type(app).__mro__
    )


def _is_factory(app: object) -> bool:
    """A function without required parameters builds an app; an app takes three arguments."""
    if not inspect.isroutine(app):
        return False
    required = [
        p
        for p in inspect.signature(app).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return not required


# ------------------------------------------------------------------------- methods as routes


def bind_routes(app: Any, instance: object, cls: type) -> None:
    """Bind every route whose function belongs to `cls`, or a base of it, to the instance.

    The app is changed in place: a replica has one instance, and so one app.
    """
    methods = _methods_of(cls)
    for route in list(_routes(app)):
        function = getattr(route.endpoint, "__func__", route.endpoint)
        if function in methods:
            _remake(route, function.__get__(instance))
    for router in _routers(app.router):
        changed = getattr(router, "_mark_routes_changed", None)
        if changed is not None:
            # Newer versions keep what they computed of included routers until this is called.
            changed()


def _methods_of(cls: type) -> set[Any]:
    return {
        value for base in cls.__mro__ for value in vars(base).values() if inspect.isfunction(value)
    }


def _routers(router: Any) -> Iterator[Any]:
    """The router and all that are included in it or mounted below it, each once."""
    seen: set[int] = set()
    waiting = [router]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        for route in getattr(one, "routes", ()):
            # Newer FastAPI includes a router as one route, which refers to the original.
            included = getattr(route, "original_router", None)
            waiting += [included] if included is not None else []
            mounted = getattr(route, "app", None)
            if mounted is not None and is_fastapi(mounted):
                waiting.append(mounted.router)


def _routes(app: Any) -> Iterator[Any]:
    """Every route that has a function of the user's, HTTP and WebSocket."""
    for router in _routers(app.router):
        for route in router.routes:
            if _is_api_route(route):
                yield route


def _is_api_route(route: object) -> bool:
    return any(
        base.__name__ in ("APIRoute", "APIWebSocketRoute") and base.__module__ == "fastapi.routing"
        for base in type(route).__mro__
    )


def _remake(route: Any, endpoint: Callable[..., Any]) -> None:
    """Run the route's constructor again with another function.

    FastAPI works parameters, models and handlers out in the constructor, and keeps each
    argument under its own name. Doing it again in place keeps the order of the routes, and
    everything that refers to this one.
    """
    names = _constructor_keywords(type(route)) - {"self", "path", "endpoint"}
    given = {name: getattr(route, name) for name in names if hasattr(route, name)}
    if getattr(route, "stream_item_type", None) is not None:
        # Worked out from the return annotation, which happens only when none is given.
        given.pop("response_model", None)
    route.__init__(route.path, endpoint, **given)


def _constructor_keywords(cls: type) -> set[str]:
    """Names that the constructor takes, those that `**kwargs` hands on to a base included."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        names |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def _check_route(cls: type, route: Any) -> None:
    """Refuse a route whose function is written in the class and takes no `self`."""
    function = route.endpoint
    if not inspect.isfunction(function) or function not in _methods_of(cls):
        return
    parameters = list(inspect.signature(function).parameters)
    if not parameters or parameters[0] != "self":
        raise RemoraError(
            f"Route {route.path!r} is the method {function.__qualname__}, whose first parameter "
            f"must be `self` (it takes: {', '.join(parameters) or 'nothing'})"
        )


# ------------------------------------------------------------------------------------ errors


def _add_error_handlers(app: Any) -> None:
    """Let an overloaded or failed deployment that the app calls be a 503 or 429, not a 500."""
    add = getattr(app, "add_exception_handler", None)
    handlers = getattr(app, "exception_handlers", {})
    if add is None:
        return
    for error in (BackPressureError, DeploymentUnavailableError):
        if error not in handlers:
            add(error, _refusal)


async def _refusal(_: object, error: Exception) -> Any:
    import math

    from starlette.responses import PlainTextResponse

    status = getattr(error, "http_status", 503)
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = {} if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}
    return PlainTextResponse(str(error), status_code=status, headers=headers)
