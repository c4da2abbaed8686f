"""Spans of requests, from the front door to the last deployment, by OpenTelemetry's own exporter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from grpc import aio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from tests.e2e.waiting import until as until_sync
from tests.integration.http_client import ask
from tests.integration.rig import Rig, call, stream, until
from tests.kitchen import pb2, pb2_grpc
from websockets.asyncio.client import connect

import remora as serve
from remora.errors import BackPressureError
from remora.observe.tracing import Span, Tracing, parent_context, set_active
from remora.proxy.front import Front
from remora.request_context import current
from remora.router.router import Router

pytestmark = pytest.mark.one_loop

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Traced:
    """What is traced while a test runs."""

    def __init__(self, sampler: Sampler) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.tracer = self.provider.get_tracer("test")
        set_active(Tracing(self.tracer))

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._memory.get_finished_spans()}

    def parents(self, name: str) -> list[str]:
        """Names of the spans above one, the nearest first; the last is what came from outside."""
        by_id = {span.context.span_id: span for span in self.spans.values()}
        above = []
        span = self.spans[name]
        while span.parent is not None:
            if span.parent.span_id not in by_id:
                above.append(f"{span.parent.span_id:016x}")
                break
            span = by_id[span.parent.span_id]
            above.append(span.name)
        return above


@pytest.fixture
def traced() -> Iterator[Traced]:
    yield Traced(ParentBased(ALWAYS_ON))
    set_active(None)


class App:
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def __call__(self) -> str:
        request = current.get()
        return request.trace_context if request is not None else ""

    def plain(self) -> bool:
        return serve.get_trace_context() is not None

    async def fails(self) -> None:
        raise KeyError("no such fish")

    async def held(self) -> None:
        await self.gate.wait()

    async def items(self) -> Any:
        for number in range(3):
            yield number

    async def cook(self, order: Any) -> Any:
        return pb2().Plate(dish=order.dish)

    Cook = cook


async def test_a_request_is_traced_from_the_front_door_to_its_handler(
    rig: Rig, traced: Traced
) -> None:
    door = await rig.door(await rig.node(App))
    answer = await ask(door, "/fish", traceparent=PARENT, x_request_id="r1")
    await until(lambda: len(traced.spans) == 3)
    proxy, route, replica = (
        "proxy_http_request App GET /",
        "route_to_replica App __call__",
        "replica_handle_request App __call__",
    )
    assert traced.parents(replica) == [route, proxy, "b7ad6b7169203331"]
    spans = traced.spans
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    # What the handler sees, and hands on to what it calls, is its own span.
    assert answer.body.decode() == f"00-{TRACE}-{spans[replica].context.span_id:016x}-01"
    assert dict(spans[proxy].attributes or {}) == {
        "request_id": "r1",
        "deployment": "App",
        "app": "default",
        "request_type": "http",
        "http.method": "GET",
        "http.route": "/",
        "http.status_code": 200,
    }
    assert dict(spans[replica].attributes or {})["replica_id"] == "default/App#r0"
    assert dict(spans[route].attributes or {})["replica_id"] == "default/App#r0"
    assert all(span.status.is_unset for span in spans.values())


async def test_without_a_parent_each_request_is_a_trace(rig: Rig, traced: Traced) -> None:
    door = await rig.door(await rig.node(App))
    headers: list[dict[str, Any]] = [
        *({}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-b7ad6b71-01"}),
    ]
    for header in headers:
        await ask(door, "/", **header)
        await until(lambda: len(traced.spans) == 3)
        assert len(traced.parents("replica_handle_request App __call__")) == 2
        traced._memory.clear()
    # What no application answers is not traced.
    await ask(door, "/-/healthz")
    assert not traced.spans


async def test_failures_are_told(rig: Rig, traced: Traced) -> None:
    _, router = await rig.pair(App)
    with pytest.raises(KeyError):
        await call(router, "fails")
    await until(lambda: len(traced.spans) == 2)
    span = traced.spans["replica_handle_request App fails"]
    assert (span.status.is_ok, span.status.description) == (False, "KeyError")
    assert [event.name for event in span.events] == ["exception"]


async def test_a_cancelled_call_and_a_stream_end_their_spans(rig: Rig, traced: Traced) -> None:
    _, router = await rig.pair(App)
    assert [item async for item in stream(router, "items")] == [0, 1, 2]
    await until(lambda: len(traced.spans) == 2)
    assert (traced.spans["replica_handle_request App items"].attributes or {})["is_streaming"]
    held = call(router, "held")
    await until(lambda: "route_to_replica App held" in traced.spans)
    held.cancel()
    await until(lambda: "replica_handle_request App held" in traced.spans)


async def test_a_call_that_finds_no_replica_ends_its_span(rig: Rig, traced: Traced) -> None:
    node = await rig.node(App, max_ongoing=1)
    router = await rig.routed(node, max_queued_requests=1)
    held = call(router, "held")
    await until(lambda: node.replica.ongoing == 1)
    waiting = call(router, "plain")
    with pytest.raises(BackPressureError):
        await call(router, "__call__")
    refused = traced.spans["route_to_replica App __call__"]
    assert "given up" in (refused.status.description or "")
    waiting.cancel()
    assert "route_to_replica App plain" in traced.spans
    assert not router._spans  # type: ignore[attr-defined]
    held.cancel()


async def test_plain_handlers_have_the_context_in_their_thread(rig: Rig, traced: Traced) -> None:
    _, router = await rig.pair(App)
    assert await call(router, "plain") is True


async def test_grpc_and_websockets_are_traced(rig: Rig, traced: Traced) -> None:
    node = await rig.node(App)
    door = await rig.grpc_door(node)
    async with aio.insecure_channel(door.address) as channel:
        cook = pb2_grpc().KitchenStub(channel).Cook
        assert (await cook(pb2().Order(dish="x"), metadata=[("traceparent", PARENT)])).dish == "x"
    await until(lambda: len(traced.spans) == 3)
    *_, proxy, outside = traced.parents("replica_handle_request App Cook")
    assert proxy.startswith("proxy_grpc_request App /")
    assert outside == "b7ad6b7169203331"
    traced._memory.clear()

    async def socket_app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    @serve.ingress(socket_app)
    class Sockets:
        pass

    front = await rig.door(await rig.node(Sockets))
    async with connect(front.url.replace("http", "ws")) as socket:
        await socket.wait_closed()
    await until(lambda: len(traced.spans) == 3)


async def test_what_was_not_sampled_is_not_recorded_and_says_so_below(rig: Rig) -> None:
    traced = Traced(ParentBased(TraceIdRatioBased(0.0)))
    try:
        door = await rig.door(await rig.node(App))
        below = (await ask(door, "/")).body.decode()
        assert not int(below[-2:], 16) & 1
        assert not traced.spans
        # The client has decided.
        await ask(door, "/", traceparent=PARENT)
        await until(lambda: len(traced.spans) == 3)
    finally:
        set_active(None)


@serve.deployment
class Child:
    async def name(self) -> str:
        return "child"


@serve.deployment
class Parent:
    def __init__(self, child: Any, tracer: Any) -> None:
        self.child, self.tracer = child, tracer

    async def ask(self) -> str:
        with self.tracer().start_as_current_span("own"):
            return str(await self.child.name.remote())

    async def __call__(self) -> str:
        return str(await self.child.name.remote())


_tracers: list[Any] = []


def tracer() -> Any:
    return _tracers[-1]


def test_calls_between_deployments_have_their_callers_for_parents(traced: Traced) -> None:
    _tracers.append(traced.tracer)
    handle = serve.run(Parent.bind(Child.bind(), tracer), _local_testing_mode=True)
    try:
        assert handle.remote().result() == "child"
        until_sync(lambda: len(traced.spans) == 4, "the outermost one ends last")
        route, replica = "route_to_replica Child name", "replica_handle_request Child name"
        asked = "replica_handle_request Parent"
        assert traced.parents(replica) == [
            route,
            f"{asked} __call__",
            "route_to_replica Parent __call__",
        ]
        traced._memory.clear()
        assert handle.ask.remote().result() == "child"
        until_sync(lambda: len(traced.spans) == 5, "the outermost one ends last")
        # The user's own span lies between.
        assert traced.parents(replica)[:3] == [route, "own", f"{asked} ask"]
    finally:
        serve.shutdown()


async def test_where_nothing_is_traced_nothing_stands_in_the_way(rig: Rig) -> None:
    door = await rig.door(await rig.node(App))
    assert type(door.front) is Front
    assert type(door.router) is Router
    assert (await ask(door, "/", traceparent=PARENT)).body.decode() == PARENT
    assert serve.get_trace_context() is None


def test_parents_are_read_as_the_standard_says() -> None:
    def read(text: str) -> bool:
        return bool(trace.get_current_span(parent_context(text)).get_span_context().is_valid)

    assert read(PARENT)
    assert read(PARENT.replace("00-", "cc-", 1) + "-what-comes-later")
    for wrong in (
        "",
        PARENT + "-more",
        PARENT.upper(),
        PARENT.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        "00-1-2-3",
    ):
        assert not read(wrong), wrong
    span = trace.get_current_span(parent_context(PARENT))
    assert Span(span).traceparent == PARENT
