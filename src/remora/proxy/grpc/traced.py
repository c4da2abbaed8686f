"""The front door over gRPC where requests are traced: a span from the head to the end.

Rules: decides nothing; requests go where they always go.
"""

from __future__ import annotations

from typing import Any

from remora.core.request.grpc_status import GrpcCode
from remora.observe.tracing import Span, Tracing
from remora.proxy.grpc.front import GrpcFront, Rpc
from remora.wire.grpc import GrpcMethod, GrpcService


class TracedGrpcFront(GrpcFront):
    """A front door that tells how long each request of an application took."""

    def __init__(self, tracing: Tracing, *given: Any) -> None:
        super().__init__(*given)
        self._tracing = tracing

    def open(self, service: GrpcService, method: GrpcMethod, path: str, context: Any) -> Rpc:
        """Decide where a request goes, and begin its span."""
        rpc = super().open(service, method, path, context)
        envelope = rpc.envelope
        rpc.span = self._tracing.begin(
            f"proxy_grpc_request {envelope.deployment} {path}",
            "server",
            envelope.trace_context,
            {
                "request_id": envelope.request_id,
                "deployment": envelope.deployment,
                "app": envelope.application,
                "request_type": "grpc",
                "rpc.system": "grpc",
                "rpc.method": path,
            },
        )
        envelope.trace_context = rpc.span.traceparent
        return rpc

    def close(self, rpc: Rpc, code: int) -> None:
        """Log and count a request that is over, and end its span."""
        super().close(rpc, code)
        span: Span | None = getattr(rpc, "span", None)
        if span is not None:
            failure = "" if code == 0 else GrpcCode(code).name
            span.end(failure, {"rpc.grpc.status_code": code})
