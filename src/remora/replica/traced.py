"""Runs the user's code where requests are traced: a span from its begin to its end.

Rules: decides nothing; requests are run as always.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from remora.observe.tracing import Span, Tracing
from remora.replica.requests import RequestRunner
from remora.request_context import RequestContext
from remora.wire.messages import CallKind, Envelope

if TYPE_CHECKING:
    from remora.replica.replica import Replica

#: Of the request that the running task works on.
_span: ContextVar[Span | None] = ContextVar("remora_span", default=None)


class TracedRunner(RequestRunner):
    """A runner that tells how long each request took, and what it raised."""

    def __init__(self, replica: Replica, tracing: Tracing) -> None:
        super().__init__(replica)
        self._tracing = tracing

    def enter(self, envelope: Envelope, task: asyncio.Task[None] | None) -> RequestContext:
        """Make this request the one that `task` works on, and begin its span."""
        span = self._tracing.begin(
            f"replica_handle_request {envelope.deployment} {envelope.method}",
            "server",
            envelope.trace_context,
            {
                "request_id": envelope.request_id,
                "replica_id": self._replica.replica_id,
                "deployment": envelope.deployment,
                "app": envelope.application,
                "call_method": envelope.method,
                "route": envelope.route,
                "multiplexed_model_id": envelope.multiplexed_model_id,
                "is_streaming": envelope.kind is CallKind.STREAM,
            },
        )
        # What it calls has this span for its parent.
        envelope.trace_context = span.traceparent
        context = super().enter(envelope, task)
        self._tracing.enter(span)
        _span.set(span)
        if task is not None:
            task.add_done_callback(partial(_ended, span))
        return context

    def describe(self, error: BaseException, envelope: Envelope) -> tuple[bytes, bytes]:
        """Log what the user's code raised, and note it in the span."""
        span = _span.get()
        if span is not None:
            if isinstance(error, Exception):
                span.otel.record_exception(error)
            _fail(span, type(error).__name__)
        return super().describe(error, envelope)


def _ended(span: Span, task: asyncio.Task[None]) -> None:
    span.end("cancelled" if task.cancelled() else "")


def _fail(span: Span, why: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.otel.set_status(Status(StatusCode.ERROR, why))
