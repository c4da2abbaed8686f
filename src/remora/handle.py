"""`DeploymentHandle`: call the methods of a deployment from anywhere in the instance.

A call from a running event loop is sent from that loop, and nothing crosses threads: the fast
path. A call from a plain thread or script goes through one background loop of the process.

Rules: no decision is taken here. Picking a replica, queueing, retries and deadlines are the
router's; this module turns arguments into bytes and answers into values.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import AbstractEventLoop
from asyncio.events import _get_running_loop  # the public one raises, which is slow
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, overload

from remora.calls.arguments import Composed, Content, is_composed, plain_body, values_among
from remora.calls.broadcast import DeploymentBroadcastResponse, send_to_all
from remora.calls.chained import ChainedCall
from remora.calls.handle_options import merged, require_neutral
from remora.calls.pending import FailedCall, submit_now
from remora.calls.selection import ReplicaSelection, reserved
from remora.calls.streamed import DeploymentResponseGenerator
from remora.calls.submit import submit_later
from remora.calls.typed import P, R, StreamMethod, UnaryMethod, is_stream, name_of
from remora.request_context import RequestContext, current, new_request_id
from remora.response import DeploymentResponse
from remora.types import DEFAULT_APP_NAME, DeploymentID
from remora.wire.messages import CallKind, Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.router.router import Router

__all__ = [
    "DeploymentBroadcastResponse",
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "ReplicaSelection",
]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    #: The deployment's class. Written without brackets, a handle is one of `Any`.
    _T = TypeVar("_T", default=Any)
else:
    from typing import TypeVar

    _T = TypeVar("_T")


_PICKLE = ("", "")


class _Generation:
    """Counts the instances that this process has let go of: routers of older ones are stale."""

    number = 0


def forget_routers() -> None:
    """Make every handle look its router up again, after this process has left an instance."""
    _Generation.number += 1


class DeploymentHandle(Generic[_T]):
    """Calls one method of one deployment; attributes lead to its other methods.

    Picklable: name, application and options travel, the connection is made on the other side.

    Concurrency: may be used from any thread and any event loop.
    """

    def __init__(
        self,
        deployment_name: str,
        app_name: str = DEFAULT_APP_NAME,
        *,
        method_name: str = "__call__",
        multiplexed_model_id: str = "",
        session_id: str = "",
        stream: bool = False,
        timeout_s: float | None = None,
        request_serialization: str = "",
        response_serialization: str = "",
    ) -> None:
        self._deployment = DeploymentID(deployment_name, app_name)
        self.method_name = method_name
        self._model_id = multiplexed_model_id
        self._session_id = session_id
        self._stream = stream
        self._timeout_s = timeout_s
        formats = (request_serialization, response_serialization)
        self._formats = _PICKLE if formats == _PICKLE else formats
        self._kind = CallKind.STREAM if stream else CallKind.UNARY
        self._loop: AbstractEventLoop | None = None
        self._router: Router | None = None
        self._generation = -1

    # ------------------------------------------------------------------------- introspection

    @property
    def deployment_name(self) -> str:
        """Name of the deployment."""
        return self._deployment.name

    @property
    def app_name(self) -> str:
        """Name of the application that the deployment is in."""
        return self._deployment.app_name

    @property
    def deployment_id(self) -> DeploymentID:
        """Application and deployment."""
        return self._deployment

    @property
    def is_initialized(self) -> bool:
        """True once a call has found its router."""
        return self._router is not None and self._generation == _Generation.number

    def running_replicas_populated(self) -> bool:
        """True once the router knows a replica."""
        return self._router is not None and self.is_initialized and self._router.num_replicas > 0

    def __repr__(self) -> str:
        method = "" if self.method_name == "__call__" else f", method={self.method_name!r}"
        return f"DeploymentHandle({self._deployment.name!r}, app={self.app_name!r}{method})"

    # ------------------------------------------------------------------------------ variants

    def options(self, **options: Any) -> DeploymentHandle[_T]:
        """Return a handle with other options; this one stays as it is.

        Args:
            options: `method_name`; `stream`: the method yields many answers; `timeout_s`:
                seconds until the call is given up, at every level below it;
                `request_serialization` and `response_serialization`: `cloudpickle` (what travels
                anyway), `pickle` (plain, which refuses what only cloudpickle can), `msgpack` or
                `orjson` (plain data only; tuples become lists);
                `multiplexed_model_id` and `session_id`: texts that travel with the call; the
                called code finds them in `remora.request_context.current`. Routers
                may heed them, see `request_router_config`.

        Raises:
            TypeError: unknown option, or a text option that is no text.
            ConfigError: a value that cannot be right.
        """
        return DeploymentHandle(
            self._deployment.name, self._deployment.app_name, **merged(self._state(), options)
        )

    def _state(self) -> dict[str, Any]:
        return {
            "method_name": self.method_name,
            "multiplexed_model_id": self._model_id,
            "session_id": self._session_id,
            "stream": self._stream,
            "timeout_s": self._timeout_s,
            "request_serialization": self._formats[0],
            "response_serialization": self._formats[1],
        }

    @overload
    def method(  # type: ignore[overload-overlap]  # the first that fits is meant
        self, function: Callable[Concatenate[_T, P], AsyncIterator[R]]
    ) -> StreamMethod[P, R]: ...

    @overload
    def method(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[_T, P], Iterator[R]]
    ) -> StreamMethod[P, R]: ...

    @overload
    def method(
        self, function: Callable[Concatenate[_T, P], Coroutine[Any, Any, R]]
    ) -> UnaryMethod[P, R]: ...

    @overload
    def method(self, function: Callable[Concatenate[_T, P], R]) -> UnaryMethod[P, R]: ...

    def method(self, function: Callable[..., Any]) -> Any:
        """Select a method by the function it is: checkers know its arguments and its result.

        `handle.method(Model.predict).remote(1)` is `handle.predict.remote(1)`; a method that
        yields is streamed. Only the name is used: the function of a parent class will do.

        Args:
            function: of the deployment's class.

        Raises:
            TypeError: it is no function.
        """
        return self.options(method_name=name_of(function), stream=is_stream(function))

    def __getattr__(self, name: str) -> DeploymentHandle[Any]:
        # Reached only for names that are neither the class's nor kept: the deployment's methods.
        if (name.startswith("__") and name != "__call__") or name.startswith(("_ipython", "_repr")):
            # Protocols of Python and of notebooks look for these; they are no methods to call.
            raise AttributeError(name)
        # `handle.method` is written in every call: kept, the next one finds it without us.
        made = self.__dict__[name] = self.options(method_name=name)
        return made

    def __reduce__(self) -> Any:
        return _restore, (self._deployment.name, self._deployment.app_name, self._state())

    # ---------------------------------------------------------------------------------- calls

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method with these arguments; returns at once.

        A `DeploymentResponse` among the arguments is replaced by its value before the call is
        sent, without a detour over this process's code.

        Returns:
            A `DeploymentResponse`, or a `DeploymentResponseGenerator` with `stream=True`.

        Cancellation: a call made inside a request is cancelled when that request is.
        """
        context = current.get()
        envelope = self._envelope(context)
        loop = _get_running_loop()
        make: Any = DeploymentResponseGenerator if self._stream else DeploymentResponse
        if (args and is_composed(args)) or (kwargs and is_composed(kwargs.values())):
            content = Composed(args, kwargs, envelope).content
            return make(submit_later(self._find_router, loop, envelope, content, context), envelope)
        try:
            data = plain_body(args, kwargs, envelope)
        except Exception as error:  # noqa: BLE001 - border: the user's __reduce__ may raise anything
            return make(FailedCall(error), envelope)
        if loop is None:
            ready = partial(_ready, data)
            return make(submit_later(self._find_router, None, envelope, ready, context), envelope)
        router = self._router
        if router is None or loop is not self._loop or self._generation != _Generation.number:
            router = self._find_router(loop)
            if self._router is None:
                # News are on their way to this loop: the call waits for them.
                ready = partial(_ready, data)
                call = submit_later(self._find_router, loop, envelope, ready, context)
                return make(call, envelope)
        return make(submit_now(router, envelope, data, context), envelope)

    @asynccontextmanager
    async def choose_replica(self, *args: Any, **kwargs: Any) -> AsyncIterator[ReplicaSelection]:
        """Reserve a slot on a replica: `async with handle.choose_replica() as selection`.

        The router chooses as for every call, and waits while all are full. The slot is given
        back at the end of the block, unless `dispatch` has used it.

        Args:
            args: those of the call, for a request router that looks at them; they do not travel.
                Responses and streams among them, which are no values yet, are None for it.
            kwargs: the same.

        Raises:
            RequestError: no replica has room in time.
        """
        context = current.get()
        router = self._find_router(asyncio.get_running_loop())
        envelope = self._envelope(context)
        body: Body = b""
        if args or kwargs:
            body = plain_body(*values_among(args, kwargs), envelope)
        async with reserved(router, envelope, context, body) as selection:
            yield selection

    def dispatch(self, selection: ReplicaSelection, *args: Any, **kwargs: Any) -> Any:
        """Call the method on the replica that `choose_replica` has chosen; returns at once.

        Once for each selection, inside its block, in the same event loop.

        Returns:
            A `DeploymentResponse`, or a `DeploymentResponseGenerator` with `stream=True`. Fails
            with `ReplicaUnavailableError` when the replica is gone.

        Raises:
            ValueError: the selection is of another deployment.
            RuntimeError: it was used already, is over, or belongs to another loop.
        """
        if not isinstance(selection, ReplicaSelection):
            raise TypeError(f"dispatch() needs a ReplicaSelection, not {selection!r}")
        loop = _get_running_loop()
        slot: Any = selection.take(self._deployment, loop)
        context = current.get()
        envelope = self._envelope(context)
        content = Composed(args, kwargs, envelope).content
        call = submit_later(lambda _: slot, loop, envelope, content, context)
        if isinstance(call, ChainedCall):
            # Whatever keeps the call from being sent, the slot does not stay reserved.
            call.on_submitted(slot.cancel)
        make: Any = DeploymentResponseGenerator if self._stream else DeploymentResponse
        return make(call, envelope)

    def broadcast(self, method_name: str, *args: Any, **kwargs: Any) -> DeploymentBroadcastResponse:
        """Call a method on every running replica; returns at once.

        A replica that is full gets the call as soon as it has room. The calls do not count for
        `max_queued_requests`.

        Args:
            method_name: of the method, which has one answer.
            args: of each call.
            kwargs: the same.

        Raises:
            TypeError: no method name, or an argument that is a stream: it can be read only once.
            Exception: the arguments cannot be sent.
        """
        given: object = method_name  # whatever the caller really passed
        if not isinstance(given, str) or not given:
            raise TypeError(f"broadcast() needs the name of a method, not {method_name!r}")
        from remora.router.process import background_client

        context = current.get()
        handle = self.options(method_name=method_name, stream=False)
        envelope = handle._envelope(context)
        composed = Composed(args, kwargs, envelope)
        if composed.has_streams:
            raise TypeError(
                "broadcast() cannot send a stream: it could be read by one replica only. Pass "
                "its items as a list."
            )
        loop = _get_running_loop() or background_client().loop
        send = partial(send_to_all, handle._find_router, loop, envelope, composed.content, context)
        return DeploymentBroadcastResponse(loop, envelope, send, context)

    def _envelope(self, context: RequestContext | None) -> Envelope:
        timeout_s = self._timeout_s
        if context is None:
            request_id = new_request_id()
            trace = ""
        else:
            request_id = context.request_id or new_request_id()
            trace = context.trace_context
            if context.deadline is not None:
                left_s = max(0.0, context.deadline - time.monotonic())
                timeout_s = left_s if timeout_s is None else min(left_s, timeout_s)
        name, app_name = self._deployment
        # By position, which is the quickest: see `Envelope` for the order.
        envelope = Envelope(
            request_id,
            app_name,
            name,
            self.method_name,
            self._kind,
            timeout_s,
            0,
            False,
            self._model_id,
            self._session_id,
            trace,
        )
        if self._formats is not _PICKLE:
            envelope.request_serialization, envelope.response_serialization = self._formats
        return envelope

    def _find_router(self, loop: AbstractEventLoop) -> Router:
        """Look the router of a loop up, on that loop, and keep it for the next call."""
        from remora.router.process import routing_client

        client = routing_client(loop)
        router = client.router(self._deployment)
        kept = None if client.is_behind else router
        self._loop, self._router, self._generation = loop, kept, _Generation.number
        return router

    # ------------------------------------------------------------- names that Ray Serve has

    def _init(self, **options: Any) -> None:
        """Connect now instead of at the first call.

        Raises:
            RuntimeError: connected already.
            TypeError: unknown option.
        """
        require_neutral(options)
        if self.is_initialized:
            raise RuntimeError(f"{self!r} is connected already; _init works only once, before it.")
        loop = _get_running_loop()
        if loop is not None:
            self._find_router(loop)
            return
        from remora.router.process import background_client

        client = background_client()

        async def find() -> None:
            self._find_router(client.loop)

        asyncio.run_coroutine_threadsafe(find(), client.loop).result()

    def shutdown(self) -> None:
        """Let go of the router. It is shared with other handles, so it lives on for them."""
        self._loop = self._router = None
        self._generation = -1

    async def shutdown_async(self) -> None:
        """Let go of the router; the same as `shutdown`."""
        self.shutdown()


async def _ready(body: Body) -> Content:
    return Content(body)


def _restore(name: str, app_name: str, state: dict[str, Any]) -> DeploymentHandle[Any]:
    return DeploymentHandle(name, app_name, **state)
