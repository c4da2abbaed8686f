"""Handles and responses over a router that answers by itself."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remora.calls.streamed import DeploymentResponseGenerator
from remora.errors import ConfigError, InstanceError, RayServeException, RequestCancelledError
from remora.handle import DeploymentHandle, forget_routers
from remora.request_context import RequestContext, current
from remora.response import DeploymentResponse
from remora.router import process as routing
from remora.router.call import Call, CallState, StreamCall, UnaryCall
from remora.router.router import Router
from remora.transport.errors import encode_error
from remora.transport.packing import pack_value
from remora.types import DeploymentID
from remora.wire import values
from remora.wire.messages import Envelope, FrameKind

#: Stands for "no answer until the test says so".
HOLD = object()


class FakeRouter:
    """Answers each call on the next turn of its loop with what `answer` returns or raises."""

    name = "tester"

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[..., Any]) -> None:
        self.loop = loop
        self.num_replicas = 1
        self.calls: list[Call] = []
        self.envelopes: list[Envelope] = []
        self.abandoned = 0
        self._answer = answer

    def call(self, envelope: Envelope, body: bytes) -> UnaryCall:
        call = UnaryCall(cast(Router, self), envelope, body)
        self._begin(call, envelope, body)
        return call

    def stream(self, envelope: Envelope, body: bytes) -> StreamCall:
        call = StreamCall(cast(Router, self), envelope, body)
        self._begin(call, envelope, body)
        return call

    def on_abandoned(self) -> None:
        self.abandoned += 1

    def on_answered(self, call: Call, load: int) -> None: ...

    def _begin(self, call: Call, envelope: Envelope, body: bytes) -> None:
        call.state = CallState.QUEUED
        self.calls.append(call)
        self.envelopes.append(envelope)
        args, kwargs = values.loads(body)
        self.loop.call_soon(self._finish, call, envelope.method, args, kwargs)

    def _finish(self, call: Call, method: str, args: Any, kwargs: Any) -> None:
        if call.state is CallState.DONE:
            return
        try:
            answer = self._answer(method, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - border: the fake user's code
            meta, data = encode_error(error)
            call.on_frame((FrameKind.ERROR, 1, 0, 0, meta, data))
            return
        if answer is HOLD:
            return
        if isinstance(call, StreamCall):
            for item in answer:
                if isinstance(item, Exception):
                    meta, data = encode_error(item)
                    call.on_frame((FrameKind.ERROR, 1, 0, 0, meta, data))
                    return
                call.on_frame(frame(FrameKind.ITEM, item))
            call.on_frame((FrameKind.END, 1, 0, 0, b"", b""))
        else:
            call.on_frame(frame(FrameKind.RESPONSE, answer))


def frame(kind: FrameKind, value: Any) -> Any:
    return (kind, 0, 0, 0, b"", pack_value(value)[1])


class FakeClient:
    def __init__(self, router: FakeRouter) -> None:
        self.loop = router.loop
        self.fake = router
        self.is_behind = False

    def router(self, deployment: DeploymentID) -> FakeRouter:
        return self.fake


def answers(method: str, *args: Any, **kwargs: Any) -> Any:
    """What the fake deployment does."""
    if method == "hold":
        return HOLD
    if method == "fail":
        raise ZeroDivisionError("no")
    if method == "count":
        return range(args[0])
    if method == "count_and_fail":
        return [*range(args[0]), ZeroDivisionError("no")]
    if method == "double":
        return args[0] * 2
    return [list(args), kwargs]


@pytest.fixture
async def router() -> FakeRouter:
    """The router of the test's own loop."""
    made = FakeRouter(asyncio.get_running_loop(), answers)
    routing.adopt_client(cast(Any, FakeClient(made)))
    return made


@pytest.fixture
def handle() -> DeploymentHandle[Any]:
    forget_routers()
    return DeploymentHandle("D", "app")


@pytest.fixture
def background(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    """A router on a thread of its own, for callers without a loop."""
    loop = asyncio.new_event_loop()
    made = FakeRouter(loop, answers)
    routing.adopt_client(cast(Any, FakeClient(made)))
    monkeypatch.setattr(routing, "background_client", lambda: FakeClient(made))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


# ------------------------------------------------------------------------- in a running loop


async def test_calls_a_method_with_its_arguments(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    assert not handle.is_initialized
    assert await handle.anything.remote(1, b=2) == [[1], {"b": 2}]
    assert handle.anything.is_initialized
    sent = router.envelopes[0]
    assert (sent.application, sent.deployment, sent.method) == ("app", "D", "anything")
    assert sent.caller == "tester"
    assert await handle.remote() == [[], {}]
    assert router.envelopes[1].method == "__call__"


async def test_model_and_session_travel_with_the_call(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    await handle.options(multiplexed_model_id="m", session_id="s").remote()
    (sent,) = router.envelopes
    assert (sent.multiplexed_model_id, sent.session_id) == ("m", "s")


async def test_remote_returns_at_once_and_can_be_awaited_again(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.double.remote(4)
    assert isinstance(response, DeploymentResponse)
    assert (await response, await response) == (8, 8)


async def test_the_users_exception_comes_as_itself(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.fail.remote()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await response


async def test_result_refuses_inside_a_loop(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.double.remote(1)
    with pytest.raises(RuntimeError, match="await"):
        response.result()
    assert await response == 2


async def test_result_works_in_another_thread(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.double.remote(1)
    assert await asyncio.to_thread(response.result) == 2


async def test_cancel_ends_the_wait_of_whoever_awaits(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.hold.remote()
    waiting = asyncio.ensure_future(response._wait())
    await asyncio.sleep(0)
    assert not response.cancelled()
    response.cancel()
    response.cancel()
    assert response.cancelled()
    with pytest.raises(RequestCancelledError, match=response.request_id):
        await waiting
    with pytest.raises(RequestCancelledError):
        await response
    assert router.abandoned == 1


async def test_a_cancelled_task_cancels_the_call_that_it_awaits(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle.hold.remote(), 0.01)
    assert router.calls[0].state is CallState.DONE


# -------------------------------------------------------------------- responses as arguments


async def test_responses_as_arguments_arrive_as_values(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    one, two = handle.double.remote(1), handle.double.remote(2)
    assert await handle.f.remote(one, 3, k=two, again=one) == [[2, 3], {"k": 4, "again": 2}]


async def test_a_chain_may_be_awaited_again_and_fails_with_the_first_error(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    chain = handle.double.remote(handle.double.remote(handle.double.remote(1)))
    assert (await chain, await chain) == (8, 8)
    with pytest.raises(ZeroDivisionError):
        await handle.double.remote(handle.fail.remote())


async def test_a_chain_streams(router: FakeRouter, handle: DeploymentHandle[Any]) -> None:
    stream = handle.count.options(stream=True).remote(handle.double.remote(1))
    assert [x async for x in stream] == [0, 1]


async def test_giving_a_chain_up_leaves_its_argument_alone(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    argument = handle.hold.remote()
    chain = handle.double.remote(argument)
    waiting = asyncio.ensure_future(chain._wait())
    await asyncio.sleep(0)
    chain.cancel()
    with pytest.raises(RequestCancelledError):
        await waiting
    assert router.calls[0].state is CallState.QUEUED
    assert len(router.calls) == 1
    argument.cancel()


async def test_a_nested_response_says_what_to_do(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.double.remote(1)
    with pytest.raises(RayServeException, match="await"):
        await handle.f.remote([response])
    with pytest.raises(RayServeException):
        pickle.dumps(response)
    await response


async def test_arguments_that_cannot_be_pickled_fail_the_call(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.f.remote(threading.Lock())
    with pytest.raises(TypeError, match="pickle"):
        await response
    assert router.calls == []


# ------------------------------------------------------------------------------------ streams


async def test_streams_item_by_item(router: FakeRouter, handle: DeploymentHandle[Any]) -> None:
    stream = handle.options(stream=True).count.remote(3)
    assert isinstance(stream, DeploymentResponseGenerator)
    assert [x async for x in stream] == [0, 1, 2]
    assert [x async for x in stream] == []


async def test_items_before_an_error_are_delivered(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    stream = handle.options(stream=True).count_and_fail.remote(2)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        await anext(stream)


async def test_a_stream_is_neither_awaited_nor_has_it_a_result(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    stream = handle.options(stream=True).count.remote(1)
    with pytest.raises(TypeError, match="async for"):
        await stream
    with pytest.raises(TypeError, match="async for"):
        stream.result()
    with pytest.raises(RuntimeError, match="async for"):
        next(stream)


async def test_a_stream_that_is_dropped_unread_is_given_up(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    stream = handle.options(stream=True).hold.remote()
    (call,) = router.calls
    del stream
    gc.collect()
    # The collector comes in the middle of anything: the call is ended on the loop's next turn.
    before = call.state
    await asyncio.sleep(0)
    assert (before, call.state) == (CallState.QUEUED, CallState.DONE)


def test_a_stream_that_outlives_its_loop_is_dropped_in_silence(
    handle: DeploymentHandle[Any],
) -> None:
    async def main() -> Any:
        routing.adopt_client(cast(Any, FakeClient(FakeRouter(asyncio.get_running_loop(), answers))))
        return handle.options(stream=True).hold.remote()

    stream = asyncio.run(main())
    del stream
    gc.collect()


# ---------------------------------------------------------------------------- inside a request


@pytest.fixture
def request_context() -> Iterator[RequestContext]:
    context = RequestContext("the-id", trace_context="trace")
    token = current.set(context)
    yield context
    current.reset(token)


async def test_a_call_inside_a_request_carries_its_id(
    router: FakeRouter, handle: DeploymentHandle[Any], request_context: RequestContext
) -> None:
    current.set(request_context)
    response = handle.double.remote(1)
    assert response.request_id == router.envelopes[0].request_id == "the-id"
    assert router.envelopes[0].trace_context == "trace"


async def test_outside_a_request_ids_are_new(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    assert len({handle.double.remote(1).request_id for _ in range(5)}) == 5


async def test_the_time_left_is_the_smaller_of_both(
    router: FakeRouter, handle: DeploymentHandle[Any], request_context: RequestContext
) -> None:
    import time

    current.set(request_context)
    request_context.deadline = time.monotonic() + 5
    for own, low, high in ((None, 4, 5), (1.0, 1, 1), (60.0, 4, 5)):
        handle.options(timeout_s=own).remote()
        timeout_s = router.envelopes[-1].timeout_s
        assert timeout_s is not None
        assert low <= timeout_s <= high


async def test_children_are_cancelled_with_the_request_until_they_end(
    router: FakeRouter, handle: DeploymentHandle[Any], request_context: RequestContext
) -> None:
    current.set(request_context)
    done = handle.double.remote(1)
    held = handle.hold.remote()
    waits_for_held = handle.double.remote(held)
    stream = handle.options(stream=True).hold.remote()
    assert await done == 2
    assert len(request_context.children or ()) == 3
    assert request_context.cancel_children() == 3
    with pytest.raises(RequestCancelledError):
        await held
    with pytest.raises(RequestCancelledError):
        await waits_for_held
    with pytest.raises(RequestCancelledError):
        await anext(stream)


async def test_a_chain_leaves_the_children_when_it_ends(
    router: FakeRouter, handle: DeploymentHandle[Any], request_context: RequestContext
) -> None:
    current.set(request_context)
    assert await handle.double.remote(handle.double.remote(1)) == 4
    with pytest.raises(ZeroDivisionError):
        await handle.double.remote(handle.fail.remote())
    assert not request_context.children


# ------------------------------------------------------------------------- without a loop


def test_without_a_loop_result_waits(background: FakeRouter, handle: DeploymentHandle[Any]) -> None:
    assert handle.double.remote(handle.double.remote(2)).result() == 8
    with pytest.raises(ZeroDivisionError):
        handle.fail.remote().result()


def test_result_gives_up_waiting_but_not_the_request(
    background: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.hold.remote()
    with pytest.raises(TimeoutError, match=response.request_id):
        response.result(timeout_s=0.01)
    assert background.calls[0].state is CallState.QUEUED
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=5)


def test_without_a_loop_streams_are_iterated(
    background: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    assert list(handle.options(stream=True).count.remote(3)) == [0, 1, 2]
    stream = iter(handle.options(stream=True).count_and_fail.remote(1))
    assert next(stream) == 0
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_a_response_made_in_a_thread_can_be_awaited_in_a_loop(
    background: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.double.remote(2)
    stream = handle.options(stream=True).count.remote(2)

    async def main() -> tuple[Any, list[Any]]:
        return await response, [x async for x in stream]

    assert asyncio.run(main()) == (4, [0, 1])


def test_a_call_of_a_thread_ends_when_another_thread_has_left_the_instance(
    background: FakeRouter, handle: DeploymentHandle[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def left(loop: asyncio.AbstractEventLoop) -> Router:
        raise InstanceError("This process is in no Remora instance")

    streaming = handle.options(stream=True)
    for one in (handle, streaming):
        monkeypatch.setattr(one, "_find_router", left)
    with pytest.raises(InstanceError, match="no Remora instance"):
        handle.remote().result(timeout_s=5)
    with pytest.raises(InstanceError, match="no Remora instance"):
        next(streaming.remote())

    response = streaming.remote()
    with pytest.raises(InstanceError, match="no Remora instance"):
        asyncio.run(first_of(response))


async def first_of(stream: DeploymentResponseGenerator[Any]) -> Any:
    return await anext(stream)


def test_a_call_of_a_thread_on_a_loop_that_is_closed_fails(
    handle: DeploymentHandle[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    client = FakeClient(cast(Any, SimpleNamespace(loop=loop)))
    monkeypatch.setattr(routing, "background_client", lambda: client)
    with pytest.raises(InstanceError, match="shut down"):
        handle.remote().result(timeout_s=5)
    with pytest.raises(InstanceError, match="shut down"):
        next(handle.options(stream=True).remote())


def test_connecting_ahead_says_when_the_instance_was_left(
    background: FakeRouter, handle: DeploymentHandle[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def left(loop: asyncio.AbstractEventLoop) -> Router:
        raise InstanceError("This process is in no Remora instance")

    monkeypatch.setattr(handle, "_find_router", left)
    with pytest.raises(InstanceError, match="no Remora instance"):
        handle._init()


def test_many_threads_share_a_handle(background: FakeRouter, handle: DeploymentHandle[Any]) -> None:
    results: list[int] = []

    def work(number: int) -> None:
        results.append(handle.double.remote(number).result(timeout_s=5))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 2, 4, 6, 8, 10, 12, 14]


# ------------------------------------------------------------------------ options and identity


def test_options_return_another_handle(handle: DeploymentHandle[Any]) -> None:
    other = handle.options(
        method_name="m", multiplexed_model_id="x", session_id="s", stream=True, timeout_s=3
    )
    assert other._state() == {
        "method_name": "m",
        "multiplexed_model_id": "x",
        "session_id": "s",
        "stream": True,
        "timeout_s": 3,
        "request_serialization": "",
        "response_serialization": "",
    }
    assert handle._state()["method_name"] == "__call__"
    assert other.options(stream=False)._state()["multiplexed_model_id"] == "x"
    # What has one meaning only here is taken and changes nothing.
    neutral = handle.options(_prefer_local_routing=True, _by_reference=False)
    assert neutral._state() == handle._state()


def test_texts_of_other_classes_travel_as_plain_ones(handle: DeploymentHandle[Any]) -> None:
    class Named(str):
        """As numpy has one."""

        __slots__ = ()

    state = handle.options(multiplexed_model_id=Named("m"), session_id=Named("s"))._state()
    assert (state["multiplexed_model_id"], state["session_id"]) == ("m", "s")
    assert {type(state[name]) for name in ("multiplexed_model_id", "session_id")} == {str}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"metod_name": "x"}, TypeError, "Did you mean 'method_name'"),
        ({"stream": "yes"}, TypeError, "stream"),
        ({"session_id": 3}, TypeError, "session_id"),
        ({"method_name": ""}, ConfigError, "method_name"),
        ({"timeout_s": 0}, ConfigError, "timeout_s"),
        ({"request_serialization": "xml"}, ValueError, "cloudpickle"),
    ],
)
def test_refuses_wrong_options(
    handle: DeploymentHandle[Any], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        handle.options(**options)


def test_methods_are_made_once(handle: DeploymentHandle[Any]) -> None:
    assert handle.predict is handle.predict
    assert handle.predict.method_name == "predict"
    assert not hasattr(handle, "__array__")
    assert not hasattr(handle, "_repr_html_")


def test_travels_with_its_options(handle: DeploymentHandle[Any]) -> None:
    sent = handle.predict.options(session_id="s", timeout_s=2)
    for other in (pickle.loads(pickle.dumps(sent)), copy.copy(sent), copy.deepcopy(sent)):
        assert (other.deployment_name, other.app_name) == ("D", "app")
        assert other._state() == sent._state()
        assert not other.is_initialized


async def test_a_handle_looks_for_its_router_again_after_an_instance_was_left(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    seen = []
    steps: list[Callable[[], None]] = [forget_routers, forget_routers, handle.shutdown]
    for step in steps:
        step()
        seen.append(handle.is_initialized)
        await handle.remote()
        seen.append(handle.is_initialized and handle.running_replicas_populated())
    assert seen == [False, True, False, True, False, True]


async def test_the_first_call_connects_and_after_it_init_is_refused(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    method = handle.double
    states = [method.is_initialized]
    response = method.remote(1)
    states.append(method.is_initialized)
    with pytest.raises(RuntimeError, match="already"):
        method._init()
    assert await response == 2
    await method.shutdown_async()
    states.append(method.is_initialized)
    assert states == [False, True, False]


async def test_init_connects_only_once(router: FakeRouter, handle: DeploymentHandle[Any]) -> None:
    handle._init(_prefer_local_routing=True)
    assert handle.is_initialized
    with pytest.raises(RuntimeError, match="already"):
        handle._init()
    with pytest.raises(TypeError, match="_prefer"):
        handle._init(_prefer_local_routin=True)


# ------------------------------------------------------------------------------- typed methods


class Typed:
    def plain(self) -> int:
        return 1

    async def one(self) -> int:
        return 1

    def many(self) -> Iterator[int]:
        yield 1

    async def many_async(self) -> AsyncIterator[int]:
        yield 1

    @functools.wraps(many)
    def wrapped(self) -> Iterator[int]:
        return iter((1,))


def test_a_method_is_selected_by_its_function(handle: DeploymentHandle[Any]) -> None:
    found: Any
    for function, stream in (
        (Typed.plain, False),
        (Typed.one, False),
        (Typed.many, True),
        (Typed.many_async, True),
        (Typed.wrapped, True),
    ):
        found = handle.method(function)
        assert (found.method_name, found._stream) == (function.__name__, stream)
    found = handle.options(timeout_s=3).method(Typed.plain)
    assert found._timeout_s == 3


def test_only_a_function_selects_a_method(handle: DeploymentHandle[Any]) -> None:
    for wrong in ("plain", Typed, None, 3):
        with pytest.raises(TypeError, match="method_name"):
            handle.method(cast(Any, wrong))


async def test_a_response_may_be_typed_as_its_value(
    router: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    response = handle.double.remote(2)
    assert response.as_argument() is response
    assert await handle.double.remote(response.as_argument()) == 8


async def test_there_are_no_object_references_without_ray(
    router: FakeRouter, handle: DeploymentHandle[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every program in a pod of Ray has it.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    response = handle.double.remote(1)
    stream = handle.options(stream=True).count.remote(1)
    with pytest.raises(RuntimeError, match="Ray"):
        await response._to_object_ref()
    with pytest.raises(RuntimeError, match="Ray"):
        response._to_object_ref_sync(_timeout_s=1)
    with pytest.raises(RuntimeError, match="Ray"):
        await stream._to_object_ref_gen()
    with pytest.raises(RuntimeError, match="Ray"):
        await stream._to_object_ref()
    with pytest.raises(RuntimeError, match="Ray"):
        stream._to_object_ref_sync()
    with pytest.raises(RuntimeError, match="Ray"):
        stream._to_object_ref_gen_sync()
    assert await response == 2
    assert response.by_reference
    stream.cancel()


def test_shutting_a_handle_down_lets_go_of_its_router(
    background: FakeRouter, handle: DeploymentHandle[Any]
) -> None:
    assert handle.double.remote(1).result() == 2
    method = handle.double
    states = [(method.is_initialized, method.running_replicas_populated())]
    method.shutdown()
    states.append((method.is_initialized, method.running_replicas_populated()))
    assert states == [(True, True), (False, False)]
    assert handle.double.remote(2).result() == 4
