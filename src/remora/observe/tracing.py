"""Spans of one process, by OpenTelemetry; nothing of it is imported where nothing is traced.

Spans are made by those who override what they trace (`proxy/traced.py`, `router/traced.py`,
`replica/traced.py`): where tracing is off, these are not there, and a request pays nothing.

The parent travels as W3C `traceparent` in the envelope. A span that is not recorded has one too, so
that what the client or the first proxy decided holds at every level.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from remora.errors import MissingExtraError
from remora.options.tracing import TracingConfig

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

_log = logging.getLogger("remora.tracing")
#: For the last spans of a process that is told to end.
_HAND_OVER_LIMIT_MS = 2_000
#: In the folder of the logs.
SPANS_FILE = "spans.jsonl"
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
Attributes = Mapping[str, "str | int | bool"]
_NONE: Attributes = {}


def require_library() -> None:
    """Refuse to trace where OpenTelemetry is not installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        found = importlib.util.find_spec("opentelemetry.sdk")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise MissingExtraError("tracing_config needs OpenTelemetry", "tracing")


class Span:
    """One thing that takes time.

    Attributes:
        otel: the span of OpenTelemetry.
        traceparent: what children name as their parent.
    """

    __slots__ = ("otel", "traceparent")

    def __init__(self, otel: OtelSpan) -> None:
        self.otel = otel
        context = otel.get_span_context()
        flags = int(context.trace_flags)
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"

    def end(self, failure: str = "", attributes: Attributes = _NONE) -> None:
        """It is over.

        Args:
            failure: why it did not go well; empty: it did.
            attributes: known only now.
        """
        if self.otel.is_recording():
            for name, value in attributes.items():
                self.otel.set_attribute(name, value)
            if failure:
                from opentelemetry.trace import Status, StatusCode

                self.otel.set_status(Status(StatusCode.ERROR, failure))
        self.otel.end()


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, tracer: Tracer, flush: Callable[[], object] = lambda: None) -> None:
        """Make what traces.

        Args:
            tracer: of OpenTelemetry.
            flush: hands over the spans that have ended; may block.
        """
        self._tracer = tracer
        self._flush = flush

    async def hand_over(self) -> None:
        """Hand over the spans that have ended, before somebody ends this process."""
        await asyncio.to_thread(self._flush)

    def begin(self, name: str, kind: str, parent: str, attributes: Attributes) -> Span:
        """Begin a span.

        Args:
            name: what it is.
            kind: `server`, `client` or `internal`.
            parent: W3C `traceparent`; empty, or what is none: it is the first of its trace.
            attributes: for people.
        """
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            name, parent_context(parent), SpanKind[kind.upper()], attributes
        )
        return Span(span)

    def current(self, otherwise: str) -> str:
        """The `traceparent` of the user's own span that runs here, else another one."""
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        return Span(span).traceparent if span.get_span_context().is_valid else otherwise

    def enter(self, span: Span) -> None:
        """Make a span the parent of what the running task begins from here on."""
        from opentelemetry.context import attach
        from opentelemetry.trace import set_span_in_context

        # The task's context ends with the task.
        attach(set_span_in_context(span.otel))


def parent_context(traceparent: str) -> Context:
    """The context of OpenTelemetry in which a remote parent is current, or none is."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[4] and traceparent.startswith("00")):
        return Context()
    parent = SpanContext(int(found[1], 16), int(found[2], 16), True, TraceFlags(int(found[3], 16)))
    return set_span_in_context(NonRecordingSpan(parent), Context())


def current_or_parent(traceparent: str) -> Context:
    """The current context of OpenTelemetry if a span is current in it, else that of a parent."""
    from opentelemetry.context import get_current
    from opentelemetry.trace import get_current_span

    here = get_current()
    if get_current_span(here).get_span_context().is_valid:
        return here
    return parent_context(traceparent)


_active: Tracing | None = None


def active() -> Tracing | None:
    """What makes the spans of this process; None: nothing is traced."""
    return _active


def set_active(tracing: Tracing | None) -> None:
    """Say what makes the spans of this process."""
    global _active
    _active = tracing


def start(given: object, name: str, spans_file: Path) -> Callable[[], None]:
    """Begin to trace in this process, as the instance was told to.

    A process whose exporter cannot be made says so in its log, and works without tracing.

    Args:
        given: the instance's `TracingConfig` as a dict; None: nothing is traced.
        name: who this is.
        spans_file: where spans go without an exporter.

    Returns:
        What hands over the last spans when the process ends.
    """
    config = msgspec.convert(given or {}, TracingConfig)
    if not config.enabled:
        return lambda: None
    try:
        return _start(config, name, spans_file)
    except Exception:  # noqa: BLE001 - border: the user's exporter, and a library
        _log.exception(
            "%s traces nothing: %s could not be used.",
            name,
            config.exporter_import_path or "OpenTelemetry",
        )
        return lambda: None


def _start(config: TracingConfig, name: str, spans_file: Path) -> Callable[[], None]:
    require_library()
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    processors = _processors(config, spans_file)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sampling_ratio)),
        resource=Resource.create(
            {"service.name": "remora", "service.instance.id": name, "process.pid": os.getpid()}
        ),
        # The end of the process is this module's caller's to see.
        shutdown_on_exit=False,
    )
    for each in processors:
        provider.add_span_processor(each)
    # The user's own spans go the same way.
    trace.set_tracer_provider(provider)
    set_active(
        Tracing(provider.get_tracer("remora"), lambda: provider.force_flush(_HAND_OVER_LIMIT_MS))
    )

    def stop() -> None:
        set_active(None)
        provider.shutdown()

    return stop


def _processors(config: TracingConfig, spans_file: Path) -> list[Any]:
    if not config.exporter_import_path:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from remora.observe.span_file import SpanFile

        return [BatchSpanProcessor(SpanFile(spans_file))]
    module, _, attribute = config.exporter_import_path.replace(":", ".").rpartition(".")
    made = getattr(importlib.import_module(module), attribute)()
    if not isinstance(made, list | tuple) or not all(hasattr(each, "on_end") for each in made):
        raise TypeError(
            f"{config.exporter_import_path} must return a list of span processors, not {made!r}"
        )
    return list(made)
