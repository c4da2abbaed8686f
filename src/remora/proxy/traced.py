"""The front door over HTTP where requests are traced: a span from the head to the last byte.

Rules: decides nothing; requests go where they always go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remora.observe.tracing import Span, Tracing
from remora.proxy.front import Front, Request
from remora.wire.messages import HttpHead

if TYPE_CHECKING:
    from remora.proxy.exchange import Exchange

#: Of HTTP; a WebSocket's close codes are above them.
_ERRORS = range(500, 600)


class TracedFront(Front):
    """A front door that tells how long each request of an application took."""

    def __init__(self, tracing: Tracing, *given: Any) -> None:
        super().__init__(*given)
        self._tracing = tracing

    def open(self, head: HttpHead) -> Request:
        """Decide where a request goes, and begin its span."""
        request = super().open(head)
        envelope = request.envelope
        if envelope.application:
            span = self._tracing.begin(
                f"proxy_http_request {envelope.deployment} {head.method} {envelope.route}",
                "server",
                envelope.trace_context,
                {
                    "request_id": envelope.request_id,
                    "deployment": envelope.deployment,
                    "app": envelope.application,
                    "request_type": "http",
                    "http.method": head.method,
                    "http.route": envelope.route,
                },
            )
            envelope.trace_context = span.traceparent
            request.span = span
        return request

    def close(self, exchange: Exchange) -> None:
        """Log and count a request that is over, and end its span."""
        super().close(exchange)
        span: Span | None = getattr(exchange.request, "span", None)
        if span is not None:
            status = exchange.status
            prefix, route = exchange.envelope.route, exchange.route
            if route:
                prefix = route if prefix == "/" else prefix + route
            failure = f"status {status}" if status in _ERRORS else ""
            span.end(failure, {"http.status_code": status, "http.route": prefix})
