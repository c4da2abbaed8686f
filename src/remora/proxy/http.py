"""The HTTP front door: one ASGI callable without a framework.

It finds the application by the longest prefix, makes an envelope, and passes frames on as
they come. Bodies go through as raw bytes, in both directions, with bounded windows.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from remora.config import HTTPOptions
from remora.core.snapshot import AppRoute
from remora.errors import RequestCancelledError, RequestError
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.proxy import respond
from remora.proxy.front import CONNECTION
from remora.proxy.respond import Response
from remora.router.call import StreamCall
from remora.router.client import RoutingClient
from remora.types import DeploymentID
from remora.wire.codec import decode_error, decode_http_start, to_json
from remora.wire.framing import RawFrame
from remora.wire.messages import CallKind, Envelope, FrameKind, HttpHead

_RESPONSE = int(FrameKind.RESPONSE)
_START = int(FrameKind.START)
_ITEM = int(FrameKind.ITEM)
_ERROR = int(FrameKind.ERROR)
_SAFE_METHODS = frozenset(("GET", "HEAD"))
#: Headers that mean something to the front door itself.
_KNOWN = {
    b"x-request-id": "request_id",
    b"x-request-timeout-seconds": "timeout",
    b"content-length": "length",
    b"transfer-encoding": "chunked",
    b"serve_multiplexed_model_id": "model",
    b"serve-multiplexed-model-id": "model",
    b"x-session-id": "session",
    b"x_session_id": "session",
    b"traceparent": "trace",
    b"x-request-disconnect-disabled": "stay",
}
#: A request id from outside ends up in logs and headers.
MAX_REQUEST_ID_CHARS = 256

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def new_request_id(rng: random.Random) -> str:
    """A random UUID (version 4) as text."""
    bits = rng.getrandbits(128)
    text = f"{bits & ~(0xF000C000 << 64) | 0x4000 << 64 | 0x8 << 60:032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[(bits >> 62) & 3]}{text[17:20]}-{text[20:]}"


class HttpFront:
    """Answers every request of one proxy."""

    def __init__(
        self,
        client: RoutingClient,
        options: HTTPOptions,
        access: AccessLog,
        counters: RequestCounters,
    ) -> None:
        self._client = client
        self._options = options
        self._access = access
        self._counters = counters
        self._rng = random.Random()
        #: True from the first moment an application was reachable.
        self._was_ready = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI callable."""
        if scope["type"] != "http":
            raise RuntimeError(f"This front door speaks HTTP, not {scope['type']!r}")
        began = time.perf_counter()
        path: str = scope["path"]
        known: dict[str, str] = {}
        for name, value in scope["headers"]:
            meaning = _KNOWN.get(name)
            if meaning is not None:
                known[meaning] = value.decode("latin-1")
        request_id = known.get("request_id") or new_request_id(self._rng)
        app_name = ""
        if path.startswith("/-/"):
            status = await self._send(send, self._system(path), request_id)
        else:
            found = self._client.routes.match(path)
            if found is None:
                status = await self._send(send, respond.not_found(path), request_id)
            else:
                prefix, app = found
                app_name = app.name
                request_id = request_id[:MAX_REQUEST_ID_CHARS]
                envelope = self._envelope(scope, known, request_id, prefix, app)
                status = await self._serve(envelope, app, scope, known, receive, send)
        took_s = time.perf_counter() - began
        self._counters.count(app_name, scope["method"], status, took_s)
        self._access.add(scope, request_id, app_name, status, took_s)

    # -- the request --------------------------------------------------------------------------

    def _envelope(
        self, scope: Scope, known: dict[str, str], request_id: str, prefix: str, app: AppRoute
    ) -> Envelope:
        method = scope["method"]
        outer = self._options.root_path
        head = HttpHead(
            method,
            outer + scope["path"] if outer else scope["path"],
            scope["raw_path"],
            scope["query_string"],
            outer if prefix == "/" else outer + prefix,
            scope["headers"],
            scope["scheme"],
            scope["http_version"],
            scope["client"],
            scope["server"],
        )
        return Envelope(
            request_id,
            app.name,
            app.ingress,
            "__call__",
            CallKind.HTTP,
            self._timeout_s(known.get("timeout")),
            0,
            method in _SAFE_METHODS,
            known.get("model", ""),
            known.get("session", ""),
            known.get("trace", ""),
            self._client.name,
            prefix,
            False,
            0,
            head,
        )

    def _timeout_s(self, header: str | None) -> float | None:
        """The header overrides the option; 0 or less disables; nonsense is ignored."""
        if header is not None:
            try:
                asked = float(header)
            except ValueError:
                return self._options.request_timeout_s
            if asked == asked:
                return asked if asked > 0 else None
        return self._options.request_timeout_s

    async def _serve(
        self,
        envelope: Envelope,
        app: AppRoute,
        scope: Scope,
        known: dict[str, str],
        receive: Receive,
        send: Send,
    ) -> int:
        body: bytes = b""
        limit = self._options.max_body_bytes
        if "length" in known or "chunked" in known:
            if limit is not None and int(known.get("length", 0)) > limit:
                return await self._send(send, _too_large(limit), envelope.request_id)
            message = await receive()
            if message["type"] == "http.disconnect":
                return respond.STATUS_CLIENT_LEFT
            body = message["body"]
            envelope.body_follows = message["more_body"]
        router = self._client.router(DeploymentID(app.ingress, app.name))
        connection = scope[CONNECTION]
        call = router.stream(envelope, b"" if envelope.body_follows else body)
        if "stay" not in known:
            connection.call = call
        upload: asyncio.Task[None] | None = None
        if envelope.body_follows:
            upload = asyncio.create_task(_upload(call, body, receive, limit))
        try:
            return await self._respond(call, envelope.request_id, send)
        except RequestError as error:
            if isinstance(error, RequestCancelledError) and scope[CONNECTION].transport.is_closing():
                return respond.STATUS_CLIENT_LEFT
            return await self._send(send, respond.from_error(error), envelope.request_id)
        finally:
            connection.call = None
            if upload is not None:
                upload.cancel()

    # -- the response -------------------------------------------------------------------------

    async def _respond(self, call: StreamCall, request_id: str, send: Send) -> int:
        frame = await call.next_frame()
        kind = frame[0]
        if kind == _ERROR:
            return await self._send(send, respond.from_error_meta(decode_error(frame[4])), request_id)
        start = decode_http_start(frame[4])
        start.headers.append((b"x-request-id", request_id.encode("latin-1", "replace")))
        await send(
            {"type": "http.response.start", "status": start.status, "headers": start.headers}
        )
        if kind == _RESPONSE:
            await send({"type": "http.response.body", "body": frame[5], "more_body": False})
            return start.status
        try:
            await self._stream(call, send)
        except RequestError:
            # The head has left: a cut connection is the only honest sign of a broken answer.
            _cut(send)
        return start.status

    async def _stream(self, call: StreamCall, send: Send) -> None:
        while True:
            frame: RawFrame = await call.next_frame()
            kind = frame[0]
            if kind == _ITEM:
                await send(
                    {"type": "http.response.body", "body": bytes(frame[5]), "more_body": True}
                )
            elif kind == _ERROR:
                _cut(send)
                return
            else:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return

    async def _send(self, send: Send, response: Response, request_id: str) -> int:
        status, headers, body = response
        if status != respond.STATUS_CLIENT_LEFT:
            headers.append((b"x-request-id", request_id.encode("latin-1", "replace")))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        return status

    # -- the system's own paths ---------------------------------------------------------------

    def _system(self, path: str) -> Response:
        if path == "/-/livez":
            return respond.text(200, "success")
        if path not in ("/-/healthz", "/-/routes"):
            return respond.not_found(path)
        apps = self._client.snapshot.apps
        routed = {app.route_prefix: app.name for app in apps.values() if app.route_prefix}
        self._was_ready = self._was_ready or bool(routed)
        if not self._was_ready:
            return respond.text(503, "Route table is not populated yet.")
        if path == "/-/healthz":
            return respond.text(200, "success")
        return respond.json_body(200, to_json(routed))


async def _upload(call: StreamCall, first: bytes, receive: Receive, limit: int | None) -> None:
    """Pass the rest of a request's body on as the replica takes it."""
    received = len(first)
    if first:
        await call.send_body(first, False)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            call.cancel()
            return
        received += len(message["body"])
        if limit is not None and received > limit:
            call.give_up(BodyTooLargeError(limit))
            return
        await call.send_body(message["body"], not message["more_body"])
        if not message["more_body"]:
            return


class BodyTooLargeError(RequestError):
    """The body has more bytes than `max_body_bytes` allows."""

    http_status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than max_body_bytes={limit}.")


def _too_large(limit: int) -> Response:
    return respond.from_error(BodyTooLargeError(limit))


def _cut(send: Send) -> None:
    """Close the client's connection without completing the response."""
    cycle = getattr(send, "__self__", None)
    if cycle is not None:
        cycle.transport.abort()
