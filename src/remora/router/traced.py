"""The router of one deployment, where requests are traced: a span from the call to its sending.

Rules: decides nothing; it is the usual router besides.
"""

from __future__ import annotations

from typing import Any

from remora.observe.tracing import Span, Tracing
from remora.router.call import Call, CallState
from remora.router.link import ReplicaLink
from remora.router.router import Router
from remora.wire.messages import CallKind

_DONE = CallState.DONE
_GIVEN_UP = "it was given up before a replica had it"


class TracedRouter(Router):
    """A router that tells how long each call looked for a replica."""

    def __init__(self, tracing: Tracing, *given: Any) -> None:
        super().__init__(*given)
        self._tracing = tracing
        #: Of calls that no replica has yet.
        self._spans: dict[Call, Span] = {}
        self._num_abandoned = 0

    def submit(self, call: Call) -> None:
        """Send a call now, or queue it, or fail it."""
        self._begin(call)
        super().submit(call)
        self._settle(call)

    def submit_pinned(self, call: Call) -> None:
        """Send a call to the replica that it is pinned to, now or when that one has room."""
        self._begin(call)
        super().submit_pinned(call)
        self._settle(call)

    def send(self, call: Call, link: ReplicaLink) -> None:
        """Send a call to a replica that may take it."""
        span = self._spans.pop(call, None)
        if span is not None:
            span.end(attributes={"replica_id": str(link.replica_id)})
        super().send(call, link)

    def on_abandoned(self) -> None:
        """A call that any replica might have taken was given up."""
        super().on_abandoned()
        self._num_abandoned += 1
        # Not for each of them: many may be given up at once.
        if 2 * self._num_abandoned >= len(self._spans):
            self._sweep()

    def close(self, reason: str) -> None:
        """The deployment is gone, or this router is."""
        super().close(reason)
        self._sweep()

    def _begin(self, call: Call) -> None:
        envelope = call.envelope
        # A handle call may be made inside a span of the user's own.
        parent = envelope.trace_context
        if envelope.kind in (CallKind.UNARY, CallKind.STREAM):
            parent = self._tracing.current(parent)
        span = self._tracing.begin(
            f"route_to_replica {envelope.deployment} {envelope.method}",
            "client",
            parent,
            {
                "request_id": envelope.request_id,
                "deployment": envelope.deployment,
                "app": envelope.application,
                "call_method": envelope.method,
                "multiplexed_model_id": envelope.multiplexed_model_id,
                "is_streaming": envelope.kind is CallKind.STREAM,
            },
        )
        envelope.trace_context = span.traceparent
        self._spans[call] = span

    def _settle(self, call: Call) -> None:
        if call.state is _DONE and (span := self._spans.pop(call, None)) is not None:
            span.end(_GIVEN_UP)

    def _sweep(self) -> None:
        self._num_abandoned = 0
        for call in [each for each in self._spans if each.state is _DONE]:
            self._spans.pop(call).end(_GIVEN_UP)
