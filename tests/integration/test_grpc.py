"""gRPC through a real front door and a real replica, asked by grpcio's own client."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio
from tests.integration.rig import GrpcDoor, Node, Rig, until
from tests.kitchen import pb2, pb2_grpc

import remora as serve
from remora.errors import BackPressureError, gRPCStatusError
from remora.grpc_util import RayServegRPCContext, gRPCInputStream
from remora.observe.metrics import render

#: No script runs a gRPC front door.
pytestmark = pytest.mark.one_loop


class Kitchen:
    """Handlers of all four kinds; what they saw stays in `seen`."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.go_on = asyncio.Event()

    async def Cook(self, order: Any, grpc_context: RayServegRPCContext) -> Any:
        if order.dish in ("", "soup"):
            return pb2().Plate(dish=order.dish, count=order.count + 1, note=order.note)
        return await getattr(self, f"_{order.dish}")(order, grpc_context)

    async def _seen(self, order: Any, context: RayServegRPCContext) -> Any:
        self.seen.append(context)
        context.set_trailing_metadata([("taste", "good"), ("raw-bin", b"\x00\xff")])
        context.set_compression(grpc.Compression.Gzip)
        return pb2().Plate(dish="seen")

    async def _waits(self, order: Any, context: RayServegRPCContext) -> Any:
        self.seen.append("begun")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        return pb2().Plate(dish="waited")

    async def _coded(self, order: Any, context: RayServegRPCContext) -> Any:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such dish")
        context.set_trailing_metadata([("why", "sold out")])
        raise ValueError("not on the menu")

    async def _coded_return(self, order: Any, context: RayServegRPCContext) -> Any:
        context.set_code(grpc.StatusCode.ALREADY_EXISTS)
        return pb2().Plate(dish="ignored")

    async def _status_error(self, order: Any, context: RayServegRPCContext) -> Any:
        raise gRPCStatusError(None, grpc.StatusCode.FAILED_PRECONDITION, "oven is cold")

    async def _raises(self, order: Any, context: RayServegRPCContext) -> Any:
        raise ValueError("x" * 10_000)

    async def _full(self, order: Any, context: RayServegRPCContext) -> Any:
        raise BackPressureError(3, 2)

    async def _wrong(self, order: Any, context: RayServegRPCContext) -> Any:
        return pb2().Bill(total=1)

    async def _model(self, order: Any, context: RayServegRPCContext) -> Any:
        return pb2().Plate(dish=serve.get_multiplexed_model_id())

    async def _big(self, order: Any, context: RayServegRPCContext) -> Any:
        return pb2().Plate(note=b"x" * order.count)

    async def Serve(self, order: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Any]:
        if order.dish == "gzip":
            grpc_context.set_compression(grpc.Compression.Gzip)
        try:
            for number in range(order.count):
                yield pb2().Plate(dish=order.dish, count=number, note=order.note)
                self.seen.append(number)
            if order.dish == "burns":
                grpc_context.set_trailing_metadata([("smoke", "yes")])
                raise RuntimeError("it burns")
        finally:
            self.seen.append("closed")

    async def Sum(self, orders: gRPCInputStream[Any]) -> Any:
        total = 0
        async for order in orders:
            self.seen.append(order.count)
            total += order.count
            if order.dish == "enough":
                orders.cancel()
        self.seen.append((orders.is_exhausted, orders.is_cancelled()))
        return pb2().Bill(total=total)

    async def Chat(self, orders: gRPCInputStream[Any]) -> AsyncIterator[Any]:
        async for order in orders:
            yield pb2().Plate(dish=order.dish, count=order.count * 2)


class Plain:
    """The same with plain functions."""

    def Cook(self, order: Any) -> Any:
        return pb2().Plate(dish=order.dish)

    def Serve(self, order: Any) -> Any:
        for number in range(order.count):
            yield pb2().Plate(count=number)

    def Sum(self, orders: Any) -> Any:
        return pb2().Bill(total=0)

    async def Chat(self, orders: Any) -> Any:
        return pb2().Plate()


@asynccontextmanager
async def stub(door: GrpcDoor, **options: Any) -> AsyncIterator[Any]:
    channel_options = [(f"grpc.{key}", value) for key, value in options.items()]
    async with aio.insecure_channel(door.address, options=channel_options) as channel:
        yield pb2_grpc().KitchenStub(channel)


@pytest.fixture
async def node(rig: Rig) -> Node:
    return await rig.node(Kitchen)


@pytest.fixture
async def door(rig: Rig, node: Node) -> GrpcDoor:
    return await rig.grpc_door(node)


@pytest.fixture
async def kitchen(door: GrpcDoor) -> AsyncIterator[Any]:
    async with stub(door) as made:
        yield made


def order(dish: str = "soup", count: int = 0, note: bytes = b"") -> Any:
    return pb2().Order(dish=dish, count=count, note=note)


async def failure(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


# -- the four kinds ---------------------------------------------------------------------------


async def test_one_message_there_and_one_back(kitchen: Any) -> None:
    assert (await kitchen.Cook(order(count=1))).count == 2
    assert await kitchen.Cook(pb2().Order()) == pb2().Plate(count=1)


async def test_one_message_there_and_a_stream_back(kitchen: Any) -> None:
    assert [plate.count async for plate in kitchen.Serve(order(count=500))] == list(range(500))
    assert [plate async for plate in kitchen.Serve(order(count=0))] == []


async def test_a_stream_there_and_one_message_back(node: Node, kitchen: Any) -> None:
    async def orders() -> AsyncIterator[Any]:
        for number in range(300):
            yield order(dish="", count=number)

    assert (await kitchen.Sum(orders())).total == sum(range(300))
    assert node.target.seen[-1] == (True, False)
    assert (await kitchen.Sum(iter(()))).total == 0


async def test_a_stream_there_and_a_stream_back_turn_by_turn(kitchen: Any) -> None:
    chat = kitchen.Chat()
    for number in range(5):
        await chat.write(order("ping", number))
        assert (await chat.read()).count == number * 2
    await chat.done_writing()
    assert await chat.read() is aio.EOF


async def test_empty_messages_in_a_stream_are_messages(kitchen: Any) -> None:
    plates = [plate async for plate in kitchen.Chat(iter([pb2().Order()] * 3))]
    assert plates == [pb2().Plate()] * 3


async def test_a_handler_that_has_enough_of_a_stream_answers_at_once(
    node: Node, kitchen: Any
) -> None:
    call = kitchen.Sum()
    await call.write(order("enough", 7))
    assert (await call).total == 7
    assert node.target.seen == [7, (False, True)]


async def test_plain_functions_and_generators_serve_too(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Plain))
    async with stub(door) as kitchen:
        assert (await kitchen.Cook(order("rice"))).dish == "rice"
        assert [plate.count async for plate in kitchen.Serve(order(count=3))] == [0, 1, 2]
        error = await failure(kitchen.Sum(iter([order()])))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "Sum must be an `async def`" in (error.details() or "")


async def test_sync_clients_are_served(door: GrpcDoor) -> None:
    def ask() -> list[int]:
        with grpc.insecure_channel(door.address) as channel:
            kitchen = pb2_grpc().KitchenStub(channel)
            counts = [kitchen.Cook(order(count=1), timeout=5).count]
            counts += [plate.count for plate in kitchen.Serve(order(count=2), timeout=5)]
            counts += [kitchen.Sum(iter([order(count=4)]), timeout=5).total]
            return counts + [
                plate.count for plate in kitchen.Chat(iter([order(count=5)]), timeout=5)
            ]

    assert await asyncio.to_thread(ask) == [2, 0, 1, 4, 10]


# -- flow control -----------------------------------------------------------------------------


async def test_a_slow_reader_slows_the_generator(node: Node, kitchen: Any) -> None:
    call = kitchen.Serve(order(count=300, note=b"x" * 64_000))
    await call.read()
    before = -1
    while before != (now := len(node.target.seen)):
        before = now
        await asyncio.sleep(0.05)
    # Windows of gRPC and ours, and what sockets hold; all of it would be 19 MB.
    assert now < 200
    assert [(await call.read()).count for _ in range(299)] == list(range(1, 300))


async def test_a_handler_that_reads_slowly_slows_the_client(rig: Rig) -> None:
    node = await rig.node(Stalls)
    door = await rig.grpc_door(node)
    async with stub(door) as kitchen:
        call = kitchen.Sum()
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(300):
                await call.write(order("", 1, b"x" * 64_000))
                written += 1
            await call.done_writing()

        writing = asyncio.create_task(write())
        await until(lambda: node.target.begun)
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.05)
        assert written < 200
        node.target.go_on.set()
        assert (await call).total == 300
        await writing


class Stalls:
    """Reads one message and no other before it is told to."""

    def __init__(self) -> None:
        self.begun = False
        self.go_on = asyncio.Event()

    async def Sum(self, orders: Any) -> Any:
        total = 0
        async for order in orders:
            self.begun = True
            await self.go_on.wait()
            total += order.count
        return pb2().Bill(total=total)


# -- metadata and context ---------------------------------------------------------------------


async def test_the_context_knows_the_request_and_shapes_the_answer(
    node: Node, door: GrpcDoor
) -> None:
    metadata = (
        ("request_id", "id-1"),
        ("multiplexed_model_id", "m1"),
        ("session_id", "s1"),
        ("traceparent", "00-11-22-01"),
        ("tracestate", "a=b"),
        ("own", "text"),
        ("own-bin", b"\x00\x01"),
    )
    async with stub(door) as kitchen:
        call = kitchen.Cook(order("seen"), metadata=metadata)
        await call
        trailing = dict(await call.trailing_metadata())
    assert trailing == {"request_id": "id-1", "taste": "good", "raw-bin": b"\x00\xff"}
    (context,) = node.target.seen
    assert context.request_id() == "id-1"
    assert context.application() == "default"
    assert context.multiplexed_model_id() == "m1"
    assert context.session_id() == "s1"
    assert context.traceparent() == "00-11-22-01"
    assert context.tracestate() == "a=b"
    assert ("own", "text") in context.invocation_metadata()
    assert ("own-bin", b"\x00\x01") in context.invocation_metadata()
    assert context.peer().startswith("ipv4:127.0.0.1:")
    assert context.auth_context() == {}
    assert context.peer_identities() is None


async def test_metadata_name_the_model(kitchen: Any) -> None:
    metadata = (("multiplexed_model_id", "m1"),)
    assert (await kitchen.Cook(order("model"), metadata=metadata)).dish == "m1"


async def test_a_request_without_an_id_gets_one(kitchen: Any) -> None:
    ids = set()
    for _ in range(2):
        call = kitchen.Cook(order())
        await call
        ids.add(dict(await call.trailing_metadata())["request_id"])
    assert len(ids) == 2


async def _bytes_of(door: GrpcDoor, ask: Callable[[Any], Awaitable[Any]]) -> int:
    """How many bytes the front door sends while `ask` uses a stub."""
    host, _, port = door.address.partition(":")
    count = 0

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter, add: bool) -> None:
            nonlocal count
            while data := await source.read(65536):
                count += len(data) if add else 0
                to.write(data)
            to.close()

        await asyncio.gather(copy(reader, there, False), copy(there_reader, writer, True))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        own_port = server.sockets[0].getsockname()[1]
        async with aio.insecure_channel(f"127.0.0.1:{own_port}") as channel:
            await ask(pb2_grpc().KitchenStub(channel))
    return count


@pytest.mark.parametrize("method", ["Cook", "Serve"])
async def test_an_answer_is_compressed_when_its_handler_says_so(rig: Rig, method: str) -> None:
    door = await rig.grpc_door(await rig.node(Zips))

    async def ask(kitchen: Any) -> None:
        if method == "Cook":
            await kitchen.Cook(order("gzip" if zips else "", 50_000))
        else:
            async for _ in kitchen.Serve(order("gzip" if zips else "", 50_000)):
                pass

    zips = False
    assert await _bytes_of(door, ask) > 50_000
    zips = True
    assert await _bytes_of(door, ask) < 5_000


class Zips:
    """Answers with many equal bytes, compressed on demand."""

    async def Cook(self, order: Any, grpc_context: RayServegRPCContext) -> Any:
        if order.dish:
            grpc_context.set_compression(grpc.Compression.Gzip)
        return pb2().Plate(note=b"x" * order.count)

    async def Serve(self, order: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Any]:
        yield await self.Cook(order, grpc_context)


# -- how requests end -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dish", "code", "details"),
    [
        ("coded", grpc.StatusCode.NOT_FOUND, "no such dish"),
        ("coded_return", grpc.StatusCode.ALREADY_EXISTS, ""),
        ("status_error", grpc.StatusCode.FAILED_PRECONDITION, "oven is cold"),
        ("full", grpc.StatusCode.RESOURCE_EXHAUSTED, "Request dropped: 3 requests wait"),
        ("wrong", grpc.StatusCode.INTERNAL, "message of type kitchen.v1.Plate"),
        ("nonsense", grpc.StatusCode.INTERNAL, "AttributeError: "),
    ],
)
async def test_the_status_says_what_the_handler_meant(
    door: GrpcDoor, dish: str, code: grpc.StatusCode, details: str
) -> None:
    async with stub(door) as kitchen:
        error = await failure(kitchen.Cook(order(dish)))
    assert error.code() is code
    assert (error.details() or "").startswith(details) or details in (error.details() or "")
    trailing = dict(error.trailing_metadata())
    assert trailing["request_id"]
    assert trailing.get("why") == ("sold out" if dish == "coded" else None)


async def test_what_a_handler_raises_is_internal_cut_and_logged(
    door: GrpcDoor, caplog: pytest.LogCaptureFixture
) -> None:
    async with stub(door) as kitchen:
        with caplog.at_level(logging.ERROR, "remora.replica"):
            error = await failure(kitchen.Cook(order("raises")))
    details = error.details() or ""
    assert error.code() is grpc.StatusCode.INTERNAL
    assert details.startswith("ValueError: xxx")
    assert len(details) == 4096
    assert "App.Cook failed, gRPC kitchen.v1.Kitchen" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_stream_that_fails_ends_with_its_status_after_what_was_sent(door: GrpcDoor) -> None:
    async with stub(door) as kitchen:
        call = kitchen.Serve(order("burns", 3))
        counts = [(await call.read()).count for _ in range(3)]
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
    assert counts == [0, 1, 2]
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "RuntimeError: it burns"
    assert dict(caught.value.trailing_metadata())["smoke"] == "yes"


async def test_a_method_that_the_deployment_lacks_is_internal_and_names_those_there_are(
    door: GrpcDoor,
) -> None:
    async with stub(door) as kitchen:
        error = await failure(kitchen.Missing(order()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "has no method 'Missing'" in (error.details() or "")
    assert "Cook" in (error.details() or "")


async def test_an_unknown_service_is_unimplemented(door: GrpcDoor) -> None:
    async with aio.insecure_channel(door.address) as channel:
        error = await failure(channel.unary_unary("/no.Such/Method")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_kind_that_does_not_fit_the_handler_says_so(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Plain))
    async with stub(door) as kitchen:
        # Nothing is sent: what is being sent when the refusal comes fails by itself, in the client.
        error = await failure(kitchen.Chat().read())
    assert "App.Chat must be a generator" in (error.details() or "")


async def test_the_clients_deadline_stops_the_handler(node: Node, door: GrpcDoor) -> None:
    async with stub(door) as kitchen:
        error = await failure(kitchen.Cook(order("waits"), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: node.target.seen == ["begun", "cancelled"])
    await until(lambda: node.replica.ongoing == 0)
    assert "DEADLINE_EXCEEDED" in (await door.log())


async def test_the_limit_of_the_instance_stops_the_handler(rig: Rig) -> None:
    node = await rig.node(Kitchen)
    door = await rig.grpc_door(node, request_timeout_s=0.1)
    async with stub(door) as kitchen:
        error = await failure(kitchen.Cook(order("waits")))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "timed out after 0.1s" in (error.details() or "")
        await until(lambda: node.target.seen == ["begun", "cancelled"])


async def test_a_client_that_cancels_stops_the_handler(node: Node, door: GrpcDoor) -> None:
    async with stub(door) as kitchen:
        call = kitchen.Cook(order("waits"))
        await until(lambda: node.target.seen == ["begun"])
        call.cancel()
        await until(lambda: node.target.seen == ["begun", "cancelled"])
    await until(lambda: node.replica.ongoing == 0)
    assert "CANCELLED" in (await door.log())


async def test_a_client_that_leaves_a_stream_closes_the_generator(
    node: Node, door: GrpcDoor
) -> None:
    async with stub(door) as kitchen:
        call = kitchen.Serve(order(count=100_000, note=b"x" * 1000))
        await call.read()
        call.cancel()
        await until(lambda: "closed" in node.target.seen)
    await until(lambda: node.replica.ongoing == 0)


async def test_a_drain_waits_for_streams_in_both_directions(node: Node, kitchen: Any) -> None:
    summing = kitchen.Sum()
    await summing.write(order("", 1))
    served = aiter(kitchen.Serve(order(count=1000, note=b"x" * 1000)))
    await anext(served)
    await until(lambda: node.replica.ongoing == 2)
    draining = asyncio.create_task(node.replica.drain())
    await until(lambda: node.replica.turns_away)
    await summing.write(order("", 2))
    await summing.done_writing()
    await summing
    assert not draining.done()
    assert len([dish async for dish in served]) == 999
    await asyncio.wait_for(draining, 5)


async def test_a_client_that_cancels_its_stream_is_not_taken_for_one_that_ended_it(
    node: Node,
    kitchen: Any,
) -> None:
    for _ in range(50):
        call = kitchen.Sum()
        await call.write(order("", 1))
        await until(lambda: node.target.seen[-1:] == [1])
        call.cancel()
        await until(lambda: node.replica.ongoing == 0)
        assert node.target.seen.pop() == 1, "the handler saw an end that there was not"
        node.target.seen.clear()


async def test_a_full_queue_is_resource_exhausted(rig: Rig) -> None:
    node = await rig.node(Kitchen, max_ongoing=1)
    door = await rig.grpc_door(node)
    router = next(iter(door.client._routers.values()))
    router.update(rig.route(node, max_queued_requests=1))
    async with stub(door) as kitchen:
        first = kitchen.Cook(order("waits"))
        await until(lambda: node.target.seen == ["begun"])
        second = kitchen.Cook(order("soup"))
        await until(lambda: router.num_waiting == 1)
        error = await failure(kitchen.Cook(order("soup")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        node.target.go_on.set()
        await first
        await second


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_replica_that_dies_is_made_up_for_where_that_is_safe(
    rig: Rig, idempotent: bool
) -> None:
    first, second = await rig.node(Kitchen), await rig.node(Kitchen)
    door = await rig.grpc_door(first, second)
    router = next(iter(door.client._routers.values()))
    router.update(rig.route(first, second, idempotent=idempotent))
    async with stub(door) as kitchen:
        call = kitchen.Cook(order("waits"))
        await until(lambda: first.target.seen or second.target.seen)
        victim, other = (first, second) if first.target.seen else (second, first)
        other.target.go_on.set()
        victim.die()
        if idempotent:
            assert (await call).dish == "waited"
            assert dict(await call.trailing_metadata())["x-remora-attempts"] == "2"
        else:
            error = await failure(call)
            assert error.code() is grpc.StatusCode.INTERNAL
            assert "died while it worked on request" in (error.details() or "")


async def test_a_deployment_that_failed_is_unavailable(rig: Rig) -> None:
    door = await rig.grpc_door()
    router = next(iter(door.client._routers.values()))
    router.update(rig.route(unavailable="its constructor raised"))
    async with stub(door) as kitchen:
        error = await failure(kitchen.Cook(order()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "its constructor raised" in (error.details() or "")


async def test_a_message_over_the_limit_is_resource_exhausted_either_way(rig: Rig) -> None:
    node = await rig.node(Kitchen)
    door = await rig.grpc_door(node, max_message_bytes=10_000)
    async with stub(door) as kitchen:
        error = await failure(kitchen.Cook(order(note=b"x" * 11_000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = await failure(kitchen.Sum(iter([order(note=b"x" * 11_000)])))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = await failure(kitchen.Cook(order("big", 11_000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await kitchen.Cook(order("big", 9_000))).note == b"x" * 9_000
    await until(lambda: node.replica.ongoing == 0)


async def test_messages_of_megabytes_pass(door: GrpcDoor) -> None:
    async with stub(door, max_receive_message_length=-1) as kitchen:
        note = bytes(8_000_000)
        assert (await kitchen.Cook(order(note=note))).note == note
        assert [len(plate.note) async for plate in kitchen.Serve(order("", 2, note))] == [
            8_000_000
        ] * 2


class Moody:
    """Takes its time, fails, or streams, as each order says."""

    async def Cook(self, order: Any) -> Any:
        await asyncio.sleep(order.count / 1000)
        if order.dish == "raises":
            raise ValueError(order.dish)
        return pb2().Plate(dish=order.dish)

    async def Serve(self, order: Any) -> AsyncIterator[Any]:
        for number in range(order.count):
            await asyncio.sleep(0.001)
            yield pb2().Plate(count=number, note=order.note)

    async def Chat(self, orders: gRPCInputStream[Any]) -> AsyncIterator[Any]:
        async for order in orders:
            yield await self.Cook(order)


async def test_however_requests_end_each_ends_once_and_leaves_nothing(rig: Rig) -> None:
    node = await rig.node(Moody, max_ongoing=8)
    door = await rig.grpc_door(node)
    chance = random.Random(7)
    router = next(iter(door.client._routers.values()))

    async def one(kitchen: Any) -> None:
        dish = chance.choice(["rice", "raises"])
        what = order(dish, chance.randrange(12), bytes(chance.randrange(3) * 40_000))
        timeout = chance.choice([None, 0.03, 1.0])
        kind = chance.randrange(3)
        if kind == 0:
            call = kitchen.Cook(what, timeout=timeout)
        elif kind == 1:
            call = kitchen.Serve(what, timeout=timeout)
        else:
            call = kitchen.Chat(iter([what] * 3), timeout=timeout)
        if chance.random() < 0.3:
            asyncio.get_running_loop().call_later(chance.random() / 50, call.cancel)
        try:
            if kind == 0:
                await call
            else:
                async for _ in call:
                    pass
        except (aio.AioRpcError, asyncio.CancelledError):
            pass

    async with stub(door) as kitchen:
        await asyncio.gather(*(one(kitchen) for _ in range(300)))
        await until(lambda: door.server._front.num_ongoing == 0)
        await until(lambda: node.replica.ongoing == 0)
        assert router.num_waiting == 0
        assert [link.outstanding for link in router.members.links.values()] == [0]
        counted = sum(row[-2] for row in door.server._counters.rows())
    # What a client gave up before it left is not there to be counted.
    assert 0 < counted <= 300
    assert len((await door.log()).splitlines()) == counted


# -- which application ------------------------------------------------------------------------


async def test_the_only_application_needs_no_name(door: GrpcDoor) -> None:
    async with stub(door) as kitchen:
        await kitchen.Cook(order())
        await kitchen.Cook(order(), metadata=(("application", "default"),))
        error = await failure(kitchen.Cook(order(), metadata=(("application", "other"),)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "There is no application 'other'; there are: 'default'."
    assert dict(error.trailing_metadata())["request_id"]


async def test_of_several_applications_one_must_be_named(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen), apps=("a", "b"))
    async with stub(door) as kitchen:
        error = await failure(kitchen.Cook(order()))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "'a', 'b'" in (error.details() or "")
        for name in ("a", "b"):
            await kitchen.Cook(order(), metadata=(("application", name),))
    assert [line.split()[3] for line in (await door.log()).splitlines()] == ["-", "a", "b"]


async def test_without_applications_nothing_is_found(rig: Rig) -> None:
    door = await rig.grpc_door(apps=())
    async with stub(door) as kitchen:
        error = await failure(kitchen.Cook(order()))
    assert error.code() is grpc.StatusCode.NOT_FOUND


# -- what operators see -----------------------------------------------------------------------


async def test_requests_are_logged_and_counted(door: GrpcDoor) -> None:
    async with stub(door) as kitchen:
        await kitchen.Cook(order(), metadata=(("request_id", "r-1"),))
        await failure(kitchen.Cook(order("status_error"), metadata=(("request_id", "r-2"),)))
    text = render(door.server.families())
    labels = 'application="default",method="/kitchen.v1.Kitchen/Cook",'
    labels += 'route="/kitchen.v1.Kitchen/Cook",status_code='
    assert f'serve_num_grpc_requests_total{{{labels}"OK"}} 1' in text
    assert f'serve_num_grpc_error_requests_total{{{labels}"FAILED_PRECONDITION"}} 1' in text
    assert f'serve_num_grpc_error_requests_total{{{labels}"OK"}}' not in text
    assert f'serve_grpc_request_latency_ms_count{{{labels}"OK"}} 1' in text
    assert "serve_num_ongoing_grpc_requests 0" in text
    lines = [line.split()[1:7] for line in (await door.log()).splitlines()]
    path = "'/kitchen.v1.Kitchen/Cook'"
    assert lines == [
        ["127.0.0.1", "r-1", "default", "GRPC", path, "OK"],
        ["127.0.0.1", "r-2", "default", "GRPC", path, "FAILED_PRECONDITION"],
    ]
