"""The user's code inside a replica: open it, construct it, find its methods, let it go.

Rules: the one module that unpickles what a driver sent. Knows nothing of the wire, of limits
or of HTTP; it is told what to do by the replica's main and says how the user's code fared.

The order of a start: unpickle, constructor, ASGI app and its startup, `reconfigure` (when there
is a `user_config`), preloaded models, warm-up, first health check. The order of an end: ASGI shutdown, destructor.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, TypeVar, cast

import cloudpickle

from remora.context import ReplicaRank
from remora.destructors import destroy
from remora.errors import MethodNotFoundError, ReplicaStartError
from remora.observe.tracebacks import user_traceback
from remora.replica.lifespan import ASGIApp, Lifespan
from remora.types import DeploymentID
from remora.wire.control import ReplicaSpec

__all__ = ["MethodKind", "UserCode", "UserMethod", "in_thread", "user_traceback"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class MethodKind(Enum):
    """How a method is run, and whether it answers once or many times."""

    SYNC = "sync"
    ASYNC = "async"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"


class UserMethod:
    """A method of the user's object, ready to be called.

    Attributes:
        name: as callers name it.
        function: bound to the object.
        kind: how it is run.
    """

    __slots__ = ("_takes_grpc_context", "function", "kind", "name")

    def __init__(self, name: str, function: Callable[..., Any], kind: MethodKind) -> None:
        self.name = name
        self.function = function
        self.kind = kind
        self._takes_grpc_context: bool | None = None

    @property
    def takes_grpc_context(self) -> bool:
        """It has a parameter named `grpc_context`."""
        if self._takes_grpc_context is None:
            self._takes_grpc_context = _has_parameter(self.function, "grpc_context")
        return self._takes_grpc_context

    def __repr__(self) -> str:
        return f"UserMethod({self.name!r}, {self.kind.value})"


class UserCode:
    """One constructed copy of the user's deployment.

    Made by `construct`, ended by `destroy`.

    Concurrency: awaited on the replica's loop. What the user wrote as plain `def` runs in a
    thread, so the loop stays alive while a model loads.

    Attributes:
        deployment: whose code it is.
        target: the user's object, or function.
        asgi_app: the app that serves HTTP requests; None: requests go to `__call__`.
        lifespan: of that app; requests get a copy of its `state`.
    """

    def __init__(self, deployment: DeploymentID, target: Any) -> None:
        self.deployment = deployment
        self.target = target
        self.asgi_app: ASGIApp | None = None
        self.lifespan: Lifespan | None = None
        self._methods: dict[str, UserMethod] = {}
        self._num_http_parameters: int | None = None
        self._destroyed = False

    # ------------------------------------------------------------------------------ start

    @classmethod
    async def construct(cls, spec: ReplicaSpec) -> UserCode:
        """Bring the user's deployment up, to the first health check inclusive.

        The surroundings of the spec (`sys.path`, working directory) must be in force.

        Raises:
            ReplicaStartError: a step failed; names the step, holds the user's traceback, and
                has the user's exception as its cause.

        Cancellation: a constructor written as `def` runs on in its thread.
        """
        deployment = DeploymentID(spec.deployment, spec.application)
        # Unpickling imports the user's modules, which may take seconds.
        opened = await _step(spec, "loading the code", in_thread(cloudpickle.loads, spec.code))
        target = await _step(spec, "the constructor", _make(*opened))
        code = cls(deployment, target)
        try:
            await _step(spec, "the ASGI app", code._start_asgi_app())
            if spec.config.user_config is not None:
                rank = ReplicaRank(*spec.ranks)
                await _step(spec, "reconfigure", code.reconfigure(spec.config.user_config, rank))
            await _step(spec, "preloading models", code._preload_models())
            await _step(spec, "the warm-up", code._warm_up(spec))
            timeout_s = spec.config.health_check_timeout_s
            await _step(spec, "the first health check", code._first_health_check(timeout_s))
        except BaseException:
            await code.destroy()
            raise
        return code

    async def _start_asgi_app(self) -> None:
        """Ask the object for its ASGI app, if it has one, and run the app's startup."""
        build = getattr(self.target, "__remora_asgi_app__", None)
        if build is None:
            return
        app = build()
        if inspect.isawaitable(app):
            app = await app
        if app is None:
            raise TypeError(
                f"{self.deployment} has no ASGI app: its builder returned None. Return the app."
            )
        self.lifespan = Lifespan(cast(ASGIApp, app))
        await self.lifespan.startup()
        self.asgi_app = cast(ASGIApp, app)

    async def _preload_models(self) -> None:
        """Load what multiplexed methods of the object are to have from the start."""
        cls = type(self.target)
        for name in dir(cls):
            method = inspect.getattr_static(cls, name, None)
            preload = getattr(type(method), "__remora_preload__", None)
            if preload is not None:
                await preload(method, self.target)

    async def _warm_up(self, spec: ReplicaSpec) -> None:
        """Run the user's `warmup`, and the example requests of the options."""
        hook = self._hook("warmup")
        # One with parameters is a method for callers that happens to have this name.
        if hook is not None and not _required_parameters(hook):
            await _call(hook)
        if spec.config.warmup_requests:
            from remora.replica.warm_up import warm_up

            await warm_up(self, spec.config.warmup_requests, spec.route_prefix)

    async def _first_health_check(self, timeout_s: float) -> None:
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                await self.check_health()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(
                f"check_health did not end within health_check_timeout_s={timeout_s:g}"
            ) from error

    # ---------------------------------------------------------------------------- methods

    def method(self, name: str) -> UserMethod:
        """Find the method that a request names.

        Raises:
            MethodNotFoundError: there is none; lists those that are, nearest first.
        """
        found = self._methods.get(name)
        if found is None:
            found = self._methods[name] = self._find(name)
        return found

    def _find(self, name: str) -> UserMethod:
        function = None
        if inspect.isroutine(self.target):
            function = self.target if name == "__call__" else None
        elif name == "__call__" or not name.startswith("__"):
            function = getattr(self.target, name, None)
        if not callable(function):
            raise MethodNotFoundError(
                f"{self.deployment} has no method {name!r}. It has, nearest first: "
                f"{', '.join(self._available(name)) or 'none'}."
            )
        return UserMethod(name, function, _kind_of(function))

    def _available(self, wanted: str) -> list[str]:
        """The names of the methods there are, those most like `wanted` first."""
        if inspect.isroutine(self.target):
            return ["__call__"]
        names = [
            name
            for name in dir(type(self.target))
            if (name == "__call__" or not name.startswith("_"))
            and callable(inspect.getattr_static(type(self.target), name))
        ]
        return sorted(
            names, key=lambda name: (-difflib.SequenceMatcher(None, wanted, name).ratio(), name)
        )

    @property
    def num_http_parameters(self) -> int:
        """1 when the HTTP handler wants the request, 0 when it takes nothing.

        Raises:
            TypeError: it wants more than the request.
            MethodNotFoundError: there is no handler.
        """
        if self._num_http_parameters is None:
            handler = self.method("__call__")
            self._num_http_parameters = _num_parameters(handler.function, self.deployment)
        return self._num_http_parameters

    @property
    def docs_path(self) -> str:
        """Path of the API docs of a FastAPI app, such as `/docs`; empty without."""
        if getattr(self.asgi_app, "openapi_url", None) is None:
            return ""
        return getattr(self.asgi_app, "docs_url", None) or ""

    # ------------------------------------------------------------------------ while it runs

    async def check_health(self) -> None:
        """Run the user's `check_health`, if there is one; whatever it raises comes out."""
        check = self._hook("check_health")
        if check is not None:
            await _call(check)

    async def reconfigure(self, user_config: Any, rank: Any = None) -> None:
        """Hand a `user_config` to the user's object, with the rank if it asks for that.

        Raises:
            ReplicaStartError: there is nothing that could take it.
            Exception: what the user's `reconfigure` raised.
        """
        hook = self._hook("reconfigure")
        if hook is None:
            raise ReplicaStartError(
                f"{self.deployment} has a user_config but no way to take it: add "
                "`def reconfigure(self, user_config)` to the class, or remove user_config."
            )
        arguments = (user_config, rank) if _takes_rank(hook) else (user_config,)
        await _call(hook, *arguments)
        # It may have put other callables in place of methods.
        self._methods.clear()
        self._num_http_parameters = None

    @property
    def wants_its_rank(self) -> bool:
        """Its `reconfigure` is to hear of a new rank."""
        hook = self._hook("reconfigure")
        return hook is not None and _takes_rank(hook)

    async def record(self, name: str) -> dict[str, Any] | None:
        """Run `record_routing_stats` or `record_replica_metadata`; None: the object has none.

        Raises:
            TypeError: it returned no dict.
            Exception: what the user's code raised.
        """
        if self._hook(name) is None:
            return None
        recorded = await self.hook_result(name)
        if not isinstance(recorded, dict):
            raise TypeError(f"{name} must return a dict, not {type(recorded).__name__}")
        return recorded

    async def hook_result(self, name: str) -> object:
        """Run a hook of the user's object; None: there is none of that name."""
        hook = self._hook(name)
        return None if hook is None else await _call(hook)

    def kind_of_hook(self, name: str) -> MethodKind | None:
        """How a hook of the user's object runs; None: there is none of that name."""
        hook = self._hook(name)
        return None if hook is None else _kind_of(hook)

    def _hook(self, name: str) -> Callable[..., Any] | None:
        if inspect.isroutine(self.target):
            return None
        hook = getattr(self.target, name, None)
        return hook if callable(hook) else None

    # -------------------------------------------------------------------------------- end

    async def destroy(self) -> None:
        """Shut the ASGI app down, then run the user's `__del__`, each once and never again.

        Errors of the user's are logged: nobody waits for an answer here.
        """
        if self._destroyed:
            return
        self._destroyed = True
        if self.lifespan is not None:
            await self._log_errors("the ASGI app's shutdown", self.lifespan.shutdown())
        if not inspect.isroutine(self.target):
            await self._log_errors("__del__", destroy(self.target))

    async def _log_errors(self, what: str, work: Awaitable[object]) -> None:
        try:
            await work
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            logger.error("%s: %s failed:\n%s", self.deployment, what, user_traceback(error))


async def in_thread(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Run `function` in a thread and return what it returns.

    A `StopIteration` comes out as a RuntimeError, as from a coroutine: a future cannot carry
    one, and whoever waited for it would wait for ever.
    """

    def run() -> _T:
        try:
            return function(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(
                f"{getattr(function, '__qualname__', function)} raised StopIteration"
            ) from error

    return await asyncio.to_thread(run)


async def _step(spec: ReplicaSpec, what: str, work: Awaitable[_T]) -> _T:
    """Await one step of a start; the user's failure becomes ours, traceback included."""
    try:
        return await work
    except ReplicaStartError:
        raise
    except (Exception, SystemExit) as error:  # border: user code
        raise ReplicaStartError(
            f"Replica {spec.replica_id} could not start: {what} failed.\n{user_traceback(error)}"
        ) from error


async def _make(target: Any, args: Any, kwargs: Any) -> Any:
    """Make the user's object; a function is its own object."""
    if not inspect.isclass(target):
        return target
    if not inspect.iscoroutinefunction(target.__init__):
        return await in_thread(target, *args, **kwargs)
    # A class cannot be called when its __init__ is a coroutine: these are the two halves.
    instance = target.__new__(target, *args, **kwargs)
    await target.__init__(instance, *args, **kwargs)
    return instance


async def _call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a hook of the user's: coroutines on the loop, anything else in a thread."""
    if _kind_of(function) is MethodKind.ASYNC:
        return await function(*args)
    result = await in_thread(function, *args)
    return await result if inspect.isawaitable(result) else result


def _kind_of(function: Callable[..., Any]) -> MethodKind:
    """Look through partials and callable objects at what will run."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    if inspect.isasyncgenfunction(function):
        return MethodKind.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(function):
        return MethodKind.ASYNC
    if inspect.isgeneratorfunction(function):
        return MethodKind.GENERATOR
    return MethodKind.SYNC


def _num_parameters(handler: Callable[..., Any], deployment: DeploymentID) -> int:
    try:
        parameters = inspect.signature(handler).parameters.values()
    except ValueError:
        return 1  # A function of an extension without a signature: give it the request.
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    required = [p.name for p in [*positional[1:], *keywords] if p.default is p.empty]
    if required:
        raise TypeError(
            f"{deployment} cannot handle HTTP: its handler also requires "
            f"{', '.join(required)}. A handler takes the request, or nothing."
        )
    return 1 if positional or any(p.kind is p.VAR_POSITIONAL for p in parameters) else 0


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return []  # A function of an extension without a signature.
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:
        return False  # A function of an extension without a signature.


def _takes_rank(hook: Callable[..., Any]) -> bool:
    return "rank" in inspect.signature(hook).parameters
