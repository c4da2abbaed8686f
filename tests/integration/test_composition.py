"""Answers as arguments of other calls, and the formats that a call may ask for."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.integration.handles import handle_to, served
from tests.integration.rig import Rig, until

from remora.errors import ProtocolError, RayServeException, ReplicaDiedError, RequestTimeoutError
from remora.request_context import RequestContext, current
from remora.transport.packing import pack_value
from remora.wire import values


class Traced:
    """Counts how often a pickle of it was opened."""

    opened = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _open_traced, (self.value,)


def _open_traced(value: int) -> Traced:
    Traced.opened += 1
    return Traced(value)


class App:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[Any] = []

    async def traced(self, value: int) -> Traced:
        return Traced(value)

    async def many_traced(self, n: int, fail_at: int = -1) -> AsyncIterator[Traced]:
        for i in range(n):
            if i == fail_at:
                raise ZeroDivisionError(f"at {i}")
            yield Traced(i)

    async def sum_of(self, items: Any) -> int:
        return sum([x.value async for x in items])

    async def value_of(self, traced: Traced) -> int:
        return traced.value

    async def array(self, n: int) -> Any:
        return {"a": np.arange(n), "n": n}

    async def total(self, found: Any, *, more: Any = None) -> int:
        return int(found["a"].sum()) + (int(more["a"].sum()) if more else 0)

    async def echo(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((args, kwargs))
        return [list(args), kwargs]

    async def point(self) -> Any:
        return (1, 2)

    async def items(self, n: int) -> AsyncIterator[Any]:
        for i in range(n):
            yield (i, {"text": "ä"})

    async def fail(self) -> None:
        raise ZeroDivisionError("above")

    async def text(self, size: int) -> str:
        return "x" * size

    async def texts(self, size: int) -> AsyncIterator[str]:
        yield "x" * size

    async def read(self, items: Any) -> int:
        return len([x async for x in items])

    async def slow(self) -> None:
        await self.gate.wait()

    async def a_lambda(self) -> Any:
        return lambda: 1


async def test_an_answer_goes_on_without_being_opened_by_the_caller(rig: Rig) -> None:
    _, handle = await served(rig, App)
    before = Traced.opened
    assert await handle.value_of.remote(handle.traced.remote(7)) == 7
    # Caller and callee share this process: one opening is the callee's.
    assert Traced.opened - before == 1


async def test_streamed_answers_go_on_unopened_too(rig: Rig) -> None:
    _, handle = await served(rig, App)
    streaming = handle.options(stream=True)
    before = Traced.opened
    assert await handle.sum_of.remote(streaming.many_traced.remote(5)) == 10
    assert Traced.opened - before == 5
    packed = handle.options(request_serialization="msgpack")
    assert await packed.read.remote(streaming.items.remote(3)) == 3
    with pytest.raises(ZeroDivisionError, match="at 2"):
        await handle.sum_of.remote(streaming.many_traced.remote(5, fail_at=2))


async def test_large_answers_go_on_with_their_buffers(rig: Rig) -> None:
    _, handle = await served(rig, App)
    n = 300_000
    one, two = handle.array.remote(n), handle.array.remote(10)
    assert await handle.total.remote(one, more=two) == sum(range(n)) + 45
    np.testing.assert_array_equal((await one)["a"], np.arange(n))


async def test_an_answer_in_another_format_goes_on_into_a_pickled_call(rig: Rig) -> None:
    _, handle = await served(rig, App)
    packed = handle.options(response_serialization="msgpack")
    assert await handle.echo.remote(packed.point.remote()) == [[[1, 2]], {}]
    text = handle.options(request_serialization="orjson")
    assert await text.echo.remote(packed.point.remote(), k=handle.point.remote()) == [
        [[1, 2]],
        {"k": [1, 2]},
    ]


async def test_the_failure_of_an_argument_is_that_of_the_call(rig: Rig) -> None:
    node, handle = await served(rig, App)
    with pytest.raises(ZeroDivisionError, match="above"):
        await handle.echo.remote(handle.fail.remote())
    assert node.target.seen == []


async def test_an_argument_whose_replica_died_fails_the_call_with_that(rig: Rig) -> None:
    producer, consumer = await rig.node(App), await rig.node(App)
    handle: Any = await handle_to(rig, producer)
    argument = handle.slow.remote()
    await until(lambda: producer.replica.ongoing)
    handle._router.update(rig.route(producer, consumer))
    await until(lambda: len(handle._router._open) == 2)
    call = handle.echo.remote(argument)
    producer.die()
    with pytest.raises(ReplicaDiedError, match=producer.replica.replica_id):
        await call
    assert consumer.target.seen == []


async def test_a_shield_protects_coroutines_and_no_call_below(rig: Rig) -> None:
    node, handle = await served(rig, App)
    context = RequestContext("r")
    current.set(context)
    finished = asyncio.Event()

    async def local() -> None:
        await asyncio.sleep(0)
        finished.set()

    async def handler() -> None:
        await asyncio.shield(asyncio.gather(local(), handle.slow.remote()._wait()))

    task = asyncio.ensure_future(handler())
    await until(lambda: node.replica.ongoing)
    task.cancel()
    context.cancel_children()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished.is_set()
    await until(lambda: node.replica.ongoing == 0)


async def test_a_message_too_large_for_the_wire_fails_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, handle = await served(rig, App)
    assert await handle.text.remote(10) == "x" * 10
    monkeypatch.setattr("remora.wire.framing.MAX_FRAME_BYTES", 500_000)
    beside = handle.slow.remote()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="larger than the limit of 500000"):
            await handle.text.remote(1_000_000)
        with pytest.raises(ProtocolError, match="larger than the limit of 500000"):
            await handle.echo.remote("x" * 1_000_000)
        with pytest.raises(ProtocolError, match="larger than the limit of 500000"):
            await anext(handle.options(stream=True).texts.remote(1_000_000))
        with pytest.raises(ProtocolError, match="larger than the limit of 500000"):
            await handle.read.remote(_texts(1_000_000))
    assert await handle.text.remote(10) == "x" * 10
    handle_node = rig.nodes[0]
    handle_node.target.gate.set()
    assert await beside is None


async def _texts(size: int) -> AsyncIterator[str]:
    yield "x" * size


async def test_calls_whose_arguments_are_not_there_yet_do_not_count_as_queued(rig: Rig) -> None:
    node = await rig.node(App)
    handle: Any = await handle_to(rig, node, max_queued_requests=1)
    argument = handle.slow.remote()
    calls = [handle.echo.remote(argument) for _ in range(3)]
    await until(lambda: node.replica.ongoing == 1)
    assert handle._router.num_waiting == 0
    node.target.gate.set()
    assert [await call for call in calls] == [[[None], {}]] * 3


async def test_the_time_that_arguments_take_counts(rig: Rig) -> None:
    node, handle = await served(rig, App)
    with pytest.raises(RequestTimeoutError):
        await handle.options(timeout_s=0.05).echo.remote(handle.slow.remote())
    node.target.gate.set()
    await until(lambda: node.replica.ongoing == 0)
    assert node.target.seen == []


async def test_a_response_inside_a_list_says_what_to_do(rig: Rig) -> None:
    _, handle = await served(rig, App)
    with pytest.raises(RayServeException, match="only at the top level"):
        await handle.echo.remote([handle.point.remote()])


@pytest.mark.parametrize("name", values.FORMATS)
async def test_calls_answers_and_items_travel_in_any_format(rig: Rig, name: str) -> None:
    _, handle = await served(rig, App)
    other = handle.options(request_serialization=name, response_serialization=name)
    assert await other.echo.remote(1, b={"c": ["ä", None]}) == [[1], {"b": {"c": ["ä", None]}}]
    is_pickled = name in ("cloudpickle", "pickle")
    assert await other.point.remote() == ((1, 2) if is_pickled else [1, 2])
    first = (0, {"text": "ä"}) if is_pickled else [0, {"text": "ä"}]
    assert await anext(other.options(stream=True).items.remote(1)) == first


async def test_streamed_arguments_travel_in_any_format(rig: Rig) -> None:
    _, handle = await served(rig, Reader)

    async def items() -> AsyncIterator[Any]:
        yield (1, 2)

    assert await handle.read.remote(items()) == [(1, 2)]
    packed = handle.options(request_serialization="msgpack")
    assert await packed.read.remote(items()) == [[1, 2]]


class Reader:
    async def read(self, items: Any) -> list[Any]:
        return [x async for x in items]


async def test_a_format_that_cannot_carry_a_value_says_so(rig: Rig) -> None:
    _, handle = await served(rig, App)
    packed = handle.options(request_serialization="msgpack", response_serialization="msgpack")
    with pytest.raises(TypeError, match="plain data only"):
        await packed.echo.remote(object())
    with pytest.raises(TypeError, match="plain data only"):
        await packed.a_lambda.remote()
    plain = handle.options(request_serialization="pickle", response_serialization="pickle")
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        await plain.echo.remote(lambda: 1)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        await plain.a_lambda.remote()
    assert (await handle.a_lambda.remote())() == 1


def test_an_unopened_value_is_opened_by_pickle() -> None:
    how, body = pack_value((1, "x"), "msgpack")
    assert (how, body) == ("msgpack", msgspec.msgpack.encode((1, "x")))
    _, joined = pack_value([values.Unopened(body, how), 2])
    assert values.loads(joined) == [[1, "x"], 2]
