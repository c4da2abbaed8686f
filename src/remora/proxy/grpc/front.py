"""What the front door makes of the head of a gRPC request: where it goes, under which conditions.

Rules: decides from metadata and the last snapshot alone; sends and receives nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from remora.core.request.grpc_status import GrpcCode
from remora.core.snapshot import AppRoute, Snapshot
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.proxy.front import MAX_REQUEST_ID_CHARS
from remora.request_context import new_request_id
from remora.router.client import RoutingClient
from remora.router.router import Router
from remora.types import DeploymentID
from remora.wire.grpc import GrpcMethod, GrpcService, GrpcSetup
from remora.wire.messages import CallKind, Envelope, GrpcHead, Metadata

if TYPE_CHECKING:
    from remora.observe.tracing import Span

#: Keys of metadata that mean something to the front door itself.
_KNOWN = frozenset(
    (
        "application",
        "request_id",
        "multiplexed_model_id",
        "session_id",
        "traceparent",
        "tracestate",
    )
)
_NOTHING: Mapping[str, str] = {}


class RefusedError(Exception):
    """A request that no application gets."""

    def __init__(self, code: GrpcCode, details: str) -> None:
        self.code = code
        self.details = details
        self.request_id = ""
        super().__init__(details)


class Rpc:
    """One request on its way.

    Attributes:
        path: `/package.Service/Method`.
        began: when its head was here (`time.perf_counter`).
        envelope: what travels to the replica.
        router: of the application's ingress deployment.
        span: of it; there only where requests are traced.
    """

    __slots__ = ("began", "envelope", "path", "router", "span")

    span: Span

    def __init__(self, path: str, began: float, envelope: Envelope, router: Router) -> None:
        self.path = path
        self.began = began
        self.envelope = envelope
        self.router = router


def choose_app(name: str | None, snapshot: Snapshot) -> AppRoute:
    """Find the application that a request is for. Pure.

    Raises:
        RefusedError: there is none, or none was named and there are several.
    """
    apps = snapshot.apps
    if name is not None:
        found = apps.get(name)
        if found is not None:
            return found
        if name in snapshot.leaving.values():
            raise RefusedError(
                GrpcCode.UNAVAILABLE,
                f"Application '{name}' is being deleted, or its instance shut down.",
            )
    elif len(apps) == 1:
        return next(iter(apps.values()))
    if snapshot.ending:
        raise RefusedError(GrpcCode.UNAVAILABLE, "The instance is shutting down.")
    there = ", ".join(repr(each) for each in sorted(apps)) or "none"
    if name is not None:
        text = f"There is no application {name!r}; there are: {there}."
    elif apps:
        text = f"Several applications run; name one in the metadata 'application': {there}."
    elif snapshot.leaving:
        raise RefusedError(GrpcCode.UNAVAILABLE, "The last application is being deleted.")
    else:
        text = "No application runs."
    raise RefusedError(GrpcCode.NOT_FOUND, text)


class GrpcFront:
    """The front door of one proxy."""

    def __init__(
        self,
        client: RoutingClient,
        setup: GrpcSetup,
        access: AccessLog,
        counters: RequestCounters,
    ) -> None:
        self._client = client
        self._timeout_s = setup.request_timeout_s
        self._is_secure = bool(setup.ssl_certfile)
        self.max_message_bytes = setup.max_message_bytes
        self._access = access
        self._counters = counters
        self.num_ongoing = 0
        #: Requests that are not over before their last byte is handed to gRPC's library.
        self.under_way: set[asyncio.Task[None]] = set()
        #: From now on nothing is taken.
        self.is_stopping = False

    def open(self, service: GrpcService, method: GrpcMethod, path: str, context: Any) -> Rpc:
        """Decide where a request goes.

        Raises:
            RefusedError: nowhere; it is closed already.
        """
        began = time.perf_counter()
        metadata: Metadata = []
        known = _NOTHING
        for key, value in context.invocation_metadata():
            metadata.append((key, value))
            if key in _KNOWN and isinstance(value, str):
                if known is _NOTHING:
                    known = {}
                known[key] = value  # type: ignore[index] # ours: made one line above
        request_id = known.get("request_id", "")[:MAX_REQUEST_ID_CHARS] or new_request_id()
        peer = context.peer()
        self.num_ongoing += 1
        try:
            if self.is_stopping:
                raise RefusedError(GrpcCode.UNAVAILABLE, "This proxy stops; another may answer.")
            app = choose_app(known.get("application"), self._client.snapshot)
        except RefusedError as refusal:
            envelope = Envelope(request_id, "", "", method.name, CallKind.GRPC)
            envelope.grpc = GrpcHead(service.name, "", "", "", peer=peer)
            self._end(path, began, envelope, refusal.code)
            refusal.request_id = request_id
            raise
        head = GrpcHead(
            service.name,
            method.request_type,
            method.request_module,
            method.response_type,
            method.request_streaming,
            method.response_streaming,
            metadata,
            peer,
        )
        envelope = Envelope(
            request_id,
            app.name,
            app.ingress,
            method.name,
            CallKind.GRPC,
            self._left_s(context),
        )
        # One by one: keywords would cost more than all the rest of the envelope.
        envelope.caller = self._client.name
        envelope.route = app.route_prefix or ""
        envelope.body_follows = method.request_streaming
        envelope.grpc = head
        if known is not _NOTHING:
            envelope.multiplexed_model_id = known.get("multiplexed_model_id", "")
            envelope.session_id = known.get("session_id", "")
            envelope.trace_context = known.get("traceparent", "")
            head.trace_state = known.get("tracestate", "")
        if self._is_secure:
            head.auth = {key: list(values) for key, values in context.auth_context().items()}
            head.identity_key = context.peer_identity_key() or ""
        router = self._client.router(DeploymentID(app.ingress, app.name))
        # Each request has a task of gRPC's server.
        task = asyncio.current_task()
        if task is not None:
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)
        return Rpc(path, began, envelope, router)

    def close(self, rpc: Rpc, code: int) -> None:
        """Log and count a request that is over."""
        self._end(rpc.path, rpc.began, rpc.envelope, code)

    def _end(self, path: str, began: float, envelope: Envelope, code: int) -> None:
        self.num_ongoing -= 1
        took_s = time.perf_counter() - began
        head = envelope.grpc
        peer = head.peer if head is not None else ""
        self._counters.count(envelope.application, path, code, took_s, path)
        self._access.add_line(
            _host(peer),
            "GRPC",
            path,
            GrpcCode(code).name,
            took_s,
            envelope.request_id,
            envelope.application,
            path,
        )

    def _left_s(self, context: Any) -> float | None:
        """Seconds that the request has: of the client's deadline and our own, the nearer one."""
        asked: float | None = context.time_remaining()
        ours = self._timeout_s
        if asked is None:
            return ours
        return max(0.0, asked if ours is None else min(asked, ours))


@lru_cache(maxsize=4096)
def _host(peer: str) -> str:
    """The client's address for the access log: `ipv4:127.0.0.1:50123` is `127.0.0.1`."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer or "-"
