"""What the front door makes of a request's head: where it goes, and under which conditions.

Rules: decides from the head and the last snapshot alone; reads and writes no socket.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from remora.config import HTTPOptions
from remora.core.request.route_table import RouteTable
from remora.core.snapshot import AppRoute
from remora.errors import RequestError
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.observe.metrics import CONTENT_TYPE
from remora.proxy import respond
from remora.proxy.respond import Response
from remora.request_context import new_request_id
from remora.router.client import RoutingClient
from remora.router.router import Router
from remora.transport.membership import mine
from remora.types import DeploymentID
from remora.wire.codec import to_json
from remora.wire.messages import CallKind, Envelope, HttpHead

if TYPE_CHECKING:
    from remora.observe.tracing import Span
    from remora.proxy.exchange import Exchange

#: A body up to this size goes with the request in one message, once it is complete: a client
#: that sends slowly holds no slot of a replica meanwhile.
SMALL_BODY_BYTES = 64 * 1024
#: A request id from outside ends up in logs and headers.
MAX_REQUEST_ID_CHARS = 256

_SAFE_METHODS = frozenset(("GET", "HEAD"))
#: Headers that mean something to the front door itself.
_KNOWN = {
    b"x-request-id": "request_id",
    b"x-request-timeout-seconds": "timeout",
    b"content-length": "length",
    b"transfer-encoding": "chunked",
    b"expect": "expect",
    b"upgrade": "upgrade",
    b"serve_multiplexed_model_id": "model",
    b"serve-multiplexed-model-id": "model",
    b"x-session-id": "session",
    b"x_session_id": "session",
    b"traceparent": "trace",
    b"x-request-disconnect-disabled": "stay",
}
_NOTHING: dict[str, str] = {}
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class BodyTooLargeError(RequestError):
    """The body has more bytes than `max_body_bytes` allows."""

    http_status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than max_body_bytes={limit}.")


class BrokenBodyError(RequestError):
    """What the client sends behind the head is no body, or does not come."""

    def __init__(self, http_status: int, reason: str) -> None:
        super().__init__(reason)
        self.http_status = http_status


class StoppingError(RequestError):
    """The server stops, and takes nothing up that has no end."""

    http_status = 503

    def __init__(self) -> None:
        super().__init__("The server stops; another one may answer.")
        self.retry_after_s = 1.0


class Request:
    """A request as its exchange needs it.

    Attributes:
        envelope: what travels to the replica.
        router: of the application's ingress deployment.
        response: the answer, where no application is asked for one.
        later: makes that answer, where it takes a while; None: there is one, or an application's.
        method: of HTTP.
        path: decoded.
        speaks_chunked: the client understands chunked bodies (HTTP/1.1).
        expects_continue: the client waits for leave to send its body.
        stays: work goes on when the client leaves.
        wants_websocket: it is the handshake of one, where the connection may be upgraded.
        max_body_bytes: more are refused; None: no limit.
        span: of it; there only where requests are traced.
    """

    span: Span

    __slots__ = (
        "envelope",
        "expects_continue",
        "head",
        "later",
        "max_body_bytes",
        "method",
        "response",
        "router",
        "span",
        "speaks_chunked",
        "stays",
        "wants_websocket",
    )

    def __init__(self, envelope: Envelope, router: Router, head: HttpHead) -> None:
        self.envelope = envelope
        self.router = router
        self.head = head
        self.method = head.method
        self.response: Response | None = None
        self.later: Callable[[], Coroutine[Any, Any, Response]] | None = None
        self.speaks_chunked = head.http_version != "1.0"
        self.expects_continue = False
        self.stays = False
        self.wants_websocket = False
        self.max_body_bytes: int | None = None


class Front:
    """The front door of one proxy."""

    def __init__(
        self,
        client: RoutingClient,
        options: HTTPOptions,
        access: AccessLog,
        counters: RequestCounters,
    ) -> None:
        self._client = client
        self.options = options
        self._access = access
        self._counters = counters
        self._rng = random.Random()
        #: True from the first moment an application was reachable.
        self._was_ready = False
        #: Answers that no application gives still belong to a router's loop.
        self._nowhere = Router(DeploymentID("", ""), client.name, self._rng)
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._default_lines = b""
        #: Routers of the applications' ingress deployments, for one table of routes.
        self._doors: dict[str, Router] = {}
        self._doors_of = client.routes
        client.metrics.sources.append(counters.families)

    def open(self, head: HttpHead) -> Request:
        """Decide where a request goes."""
        known = _NOTHING
        for name, value in head.headers:
            meaning = _KNOWN.get(name)
            if meaning is not None:
                if known is _NOTHING:
                    known = {}
                known[meaning] = value.decode("latin-1")
        request_id = known.get("request_id", "")[:MAX_REQUEST_ID_CHARS] or new_request_id()
        # As the client wrote it: whoever guards these paths in front of us compares what it sees.
        if head.raw_path.startswith(b"/-/"):
            if head.raw_path == b"/-/metrics" and _is_local(head):
                request = self._answered(head, request_id, None, known)
                request.later = None if request.response is not None else self._metrics
                return request
            return self._answered(head, request_id, self._system(head), known)
        path = head.path
        found = self._client.routes.match(path)
        if found is None:
            return self._answered(head, request_id, self._nowhere_to(path), known)
        prefix, app = found
        outer = self.options.root_path
        head.root_path = outer if prefix == "/" else outer + prefix
        if outer:
            head.path = outer + path
        method = head.method
        envelope = Envelope(
            request_id,
            app.name,
            app.ingress,
            "__call__",
            CallKind.HTTP,
            self.options.request_timeout_s,
            0,
            method in _SAFE_METHODS,
            "",
            "",
            "",
            self._client.name,
            prefix,
            False,
            0,
            head,
        )
        request = Request(envelope, self._door(app), head)
        request.max_body_bytes = self.options.max_body_bytes
        if known:
            self._heed(request, known)
        return request

    def _door(self, app: AppRoute) -> Router:
        """The router of an application's ingress deployment."""
        if self._doors_of is not self._client.routes:
            self._doors_of = self._client.routes
            self._doors = {}
        door = self._doors.get(app.name)
        if door is None:
            door = self._doors[app.name] = self._client.router(DeploymentID(app.ingress, app.name))
        return door

    def close(self, exchange: Exchange) -> None:
        """Log and count a request that is over."""
        took_s = time.perf_counter() - exchange.began
        envelope = exchange.envelope
        head = exchange.request.head
        status = exchange.status
        prefix, route = envelope.route, exchange.route
        if route:
            prefix = route if prefix == "/" else prefix + route
        application = envelope.application
        self._counters.count(application, head.method, status, took_s, prefix)
        self._access.add(head, envelope.request_id, application, status, took_s, prefix)

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Header lines of every response; the server makes a new list when the date changes."""
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_lines

    def _heed(self, request: Request, known: dict[str, str]) -> None:
        envelope = request.envelope
        if "timeout" in known:
            envelope.timeout_s = self._timeout_s(known["timeout"])
        envelope.multiplexed_model_id = known.get("model", "")
        envelope.session_id = known.get("session", "")
        envelope.trace_context = known.get("trace", "")
        request.stays = known.get("stay") == "?1"
        request.wants_websocket = known.get("upgrade", "").lower() == "websocket"
        _heed_body(request, known)

    def _timeout_s(self, header: str) -> float | None:
        """The header overrides the option; 0 or less disables; nonsense is ignored."""
        try:
            asked = float(header)
        except ValueError:
            return self.options.request_timeout_s
        if asked != asked:
            return self.options.request_timeout_s
        return asked if 0 < asked < float("inf") else None

    def _answered(
        self, head: HttpHead, request_id: str, response: Response | None, known: dict[str, str]
    ) -> Request:
        envelope = Envelope(request_id, "", "", "", CallKind.HTTP)
        request = Request(envelope, self._nowhere, head)
        if known:
            _heed_body(request, known)
        request.response = response or request.response
        return request

    def _nowhere_to(self, path: str) -> Response:
        snapshot = self._client.snapshot
        found = RouteTable(snapshot.leaving).match(path) if snapshot.leaving else None
        if found is not None:
            return respond.leaving(found[1])
        return respond.ending() if snapshot.ending else respond.not_found(path)

    # -- the system's own paths ---------------------------------------------------------------

    async def _metrics(self) -> Response:
        text = await self._client.metrics.read()
        return Response(200, [(b"content-type", CONTENT_TYPE)], text.encode())

    def _system(self, head: HttpHead) -> Response:
        path = head.raw_path.decode("latin-1")
        if path == "/-/livez":
            return respond.text(200, "success")
        if path not in ("/-/healthz", "/-/routes"):
            return respond.not_found(path)
        snapshot = self._client.snapshot
        if snapshot.ending:
            return respond.ending()
        apps = snapshot.apps
        routed = {app.route_prefix: app.name for app in apps.values() if app.route_prefix}
        self._was_ready = self._was_ready or bool(routed)
        if not self._was_ready:
            return respond.text(503, "Route table is not populated yet.")
        if mine().node_id in snapshot.draining:
            # Whoever comes all the same is served.
            return respond.draining()
        if path == "/-/healthz":
            return respond.text(200, "success")
        return respond.json_body(200, to_json(routed))


def _is_local(head: HttpHead) -> bool:
    """What is counted here is for those on this machine only."""
    return head.client is not None and head.client[0] in _LOOPBACK


def _heed_body(request: Request, known: dict[str, str]) -> None:
    """Note what a head says about the body behind it."""
    head, envelope = request.head, request.envelope
    length = int(known.get("length") or 0)
    is_chunked = "chunked" in known
    limit = request.max_body_bytes
    if limit is not None and length > limit:
        request.response = respond.from_error(BodyTooLargeError(limit))
    elif is_chunked and _codings(head) != [b"chunked"]:
        request.response = respond.text(501, "The only transfer coding known here is 'chunked'.")
    expects = known.get("expect", "").lower() == "100-continue" and head.http_version != "1.0"
    request.expects_continue = expects and (is_chunked or length > 0)
    # A chunked body has no size beforehand: its handler gets each part as it comes. A client that
    # waits for leave to send gets it when the handler wants the body.
    envelope.body_follows = is_chunked or length > SMALL_BODY_BYTES or request.expects_continue


def _codings(head: HttpHead) -> list[bytes]:
    return [value.strip().lower() for name, value in head.headers if name == b"transfer-encoding"]
