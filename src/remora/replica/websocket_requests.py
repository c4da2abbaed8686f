"""Runs the user's ASGI app for one WebSocket.

The border to user code: whatever it raises becomes a refused handshake, or a close with 1011.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from remora.errors import USER_ERRORS
from remora.observe.tracebacks import user_traceback
from remora.replica.http_requests import scope_of
from remora.replica.requests import RequestRunner
from remora.replica.user_code import UserCode
from remora.replica.websocket_work import ClientGoneError, WebSocketWork
from remora.wire.codec import pack
from remora.wire.messages import PLAIN_TEXT, Envelope, FrameKind, HttpStart, WebSocketClose

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection
    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")
_ASGI = {"version": "3.0", "spec_version": "2.4"}


class WebSocketRequests:
    """Serves WebSockets with one replica's user code."""

    def __init__(self, replica: Replica, runner: RequestRunner) -> None:
        self._replica = replica
        self._runner = runner

    def work(
        self,
        connection: ReplicaConnection,
        number: int,
        envelope: Envelope,
        body: bytes | memoryview,
    ) -> WebSocketWork:
        """Make the frames' side of a WebSocket."""
        return WebSocketWork(connection, number, envelope, body)

    async def answer(self, work: WebSocketWork) -> None:
        """Run the ASGI app from the handshake to the end."""
        envelope = work.envelope
        context = work.context = self._runner.enter(envelope, work.task)
        try:
            code = self._runner.code
            if code.asgi_app is None:
                _refuse_plain(work)
                return
            scope = work.scope = _scope(envelope, code)
            await code.asgi_app(scope, work.receive, work.send)
            if not work.response_started:
                raise RuntimeError("The ASGI app returned without an answer to the handshake")
        except asyncio.CancelledError:
            context.cancel_children()
            self._runner.finish_cancelled(work)
        except USER_ERRORS as error:  # Border: user code.
            self._fail(work, error)
        else:
            _finish_well(work)

    def _fail(self, work: WebSocketWork, error: BaseException) -> None:
        if work.close is not None and _is_news_of_the_end(error):
            # Most handlers end this way when their client leaves.
            _finish_well(work)
        elif not work.accepted and not work.finished:
            work.finish(FrameKind.ERROR, *self._runner.describe(error, work.envelope))
        else:
            envelope = work.envelope
            _log.error(
                "%s failed, WebSocket %s, request %s\n%s",
                envelope.deployment,
                envelope.http.path if envelope.http is not None else "",
                envelope.request_id,
                user_traceback(error),
            )
            work.finish(FrameKind.END, pack(WebSocketClose(1011)))


def _scope(envelope: Envelope, code: UserCode) -> dict[str, Any]:
    scope = scope_of(envelope, code)
    head = envelope.http
    assert head is not None
    del scope["method"]
    scope["type"] = "websocket"
    scope["asgi"] = _ASGI
    scope["scheme"] = "wss" if head.scheme == "https" else "ws"
    scope["subprotocols"] = head.subprotocols
    scope["extensions"] = {"websocket.http.response": {}}
    return scope


def _refuse_plain(work: WebSocketWork) -> None:
    text = (
        f"Deployment {work.envelope.deployment!r} serves no WebSockets: its handler takes HTTP "
        "requests. Put @ingress on its class, with an ASGI app that has a WebSocket route."
    )
    work.finish(FrameKind.RESPONSE, pack(HttpStart(501, [PLAIN_TEXT])), text.encode())


def _finish_well(work: WebSocketWork) -> None:
    work.finish(FrameKind.END, pack(work.close or WebSocketClose(1000)))


def _is_news_of_the_end(error: BaseException) -> bool:
    """It says nothing but that the WebSocket is closed (Starlette's, without importing it)."""
    return isinstance(error, ClientGoneError) or type(error).__name__ == "WebSocketDisconnect"
