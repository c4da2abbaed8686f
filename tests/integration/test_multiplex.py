"""Many models on real replicas: where requests go, what stays, what is unloaded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest
from tests.integration.rig import Node, Rig, call, stream, until

import remora as serve
from remora.router.call import UnaryCall
from remora.router.router import Router


class Shelf:
    """Two models at a time. What happens is written down for all replicas together."""

    loads: ClassVar[Counter[str]] = Counter()
    log: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.load_gate: asyncio.Event | None = None

    @serve.multiplexed(max_num_models_per_replica=2, preload=["first"])
    async def get_model(self, model_id: str) -> _Model:
        self.loads[model_id] += 1
        if self.load_gate is not None:
            await self.load_gate.wait()
        if model_id == "bad":
            raise OSError("no such file")
        return _Model(model_id)

    async def ask(self) -> str:
        model = await self.get_model(serve.get_multiplexed_model_id())
        return f"{model.name} on {serve.get_replica_context().replica_tag}"

    async def hold(self) -> str:
        model = await self.get_model(serve.get_multiplexed_model_id())
        await self.gate.wait()
        return model.name

    async def items(self) -> AsyncIterator[str]:
        model = await self.get_model(serve.get_multiplexed_model_id())
        for number in range(2):
            yield f"{model.name}{number}"
            await self.gate.wait()

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=5, wait_policy="always")
    async def together(self, words: list[str]) -> list[str]:
        model = await self.get_model(serve.get_multiplexed_model_id())
        await self.gate.wait()
        return [f"{model.name} {word}" for word in words]

    async def __call__(self) -> str:
        return serve.get_multiplexed_model_id() or "no model"


class _Model:
    def __init__(self, name: str) -> None:
        self.name = name

    def __del__(self) -> None:
        Shelf.log.append(f"del {self.name}")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Shelf.loads = Counter()
    Shelf.log = []


@pytest.fixture
async def rig(rig: Rig) -> Rig:
    rig.is_shared = True
    return rig


def model_call(router: Router, method: str, model_id: str) -> UnaryCall:
    return call(router, method, multiplexed_model_id=model_id)


async def answer(router: Router, method: str, model_id: str) -> Any:
    return await model_call(router, method, model_id)


def holders(node: Node) -> set[str]:
    return set(node.target.get_model.held)


async def test_models_named_by_the_decorator_are_there_before_the_first_request(rig: Rig) -> None:
    node = await rig.node(Shelf)
    assert node.target.get_model.loaded() == ["first"]
    assert node.replica.notices.current.models == ("first",)


async def test_requests_for_a_model_go_to_the_replica_that_has_it(rig: Rig) -> None:
    nodes = [await rig.node(Shelf), await rig.node(Shelf)]
    routers = [await rig.routed(*nodes), await rig.routed(*nodes)]
    for _ in range(5):
        for router in routers:
            for model_id in ("a", "b"):
                await answer(router, "ask", model_id)
    assert (Shelf.loads["a"], Shelf.loads["b"]) == (1, 1)
    assert sorted(len(holders(node) & {"a", "b"}) for node in nodes) == [1, 1]


async def test_requests_that_come_while_a_model_loads_wait_for_that_load(rig: Rig) -> None:
    nodes = [await rig.node(Shelf), await rig.node(Shelf)]
    gate = asyncio.Event()
    for node in nodes:
        node.target.load_gate = gate
    router = await rig.routed(*nodes)
    calls = [model_call(router, "ask", "a") for _ in range(4)]
    await until(lambda: Shelf.loads["a"])
    gate.set()
    assert len({await one for one in calls}) == 1
    assert Shelf.loads["a"] == 1


async def test_a_model_that_keeps_its_replica_busy_is_loaded_by_another_one(rig: Rig) -> None:
    nodes = [await rig.node(Shelf, max_ongoing=2), await rig.node(Shelf, max_ongoing=2)]
    router = await rig.routed(*nodes)
    calls = [model_call(router, "hold", "hot") for _ in range(4)]
    await until(lambda: all("hot" in holders(node) for node in nodes))
    for node in nodes:
        node.target.gate.set()
    assert [await one for one in calls] == ["hot"] * 4


async def busy_holder(rig: Rig) -> tuple[Node, Node, Router, list[UnaryCall]]:
    """Two replicas: one full of requests for a model, the other one nearly full of others."""
    holder = await rig.node(Shelf, max_ongoing=3)
    other = await rig.node(Shelf, max_ongoing=3)
    router = rig.router()
    router.update(rig.route(holder))
    calls = [model_call(router, "hold", "hot") for _ in range(3)]
    await until(lambda: "hot" in holder.target.get_model.loaded())
    router.update(rig.route(holder, other))
    calls += [model_call(router, "hold", "warm") for _ in range(2)]
    await until(lambda: "warm" in other.target.get_model.loaded())
    return holder, other, router, calls


async def test_a_request_waits_for_the_holder_of_its_model_while_others_are_busy_too(
    rig: Rig,
) -> None:
    holder, other, router, calls = await busy_holder(rig)
    late = model_call(router, "ask", "hot")
    assert router.num_waiting == 1
    holder.target.gate.set()
    assert await late == "hot on r0"
    other.target.gate.set()
    await asyncio.gather(*calls)
    assert Shelf.loads["hot"] == 1


async def test_a_request_that_waits_for_a_replica_that_goes_is_served_by_another_one(
    rig: Rig,
) -> None:
    holder, other, router, calls = await busy_holder(rig)
    late = model_call(router, "ask", "hot")
    assert router.num_waiting == 1
    holder.die()
    assert await late == "hot on r1"
    other.target.gate.set()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_request_that_waits_for_a_replica_that_drains_is_served_by_another_one(
    rig: Rig,
) -> None:
    holder, other, router, calls = await busy_holder(rig)
    late = model_call(router, "ask", "hot")
    drained = asyncio.ensure_future(holder.replica.drain())
    assert await late == "hot on r1"
    for node in (holder, other):
        node.target.gate.set()
    await asyncio.gather(drained, *calls)


async def test_a_stream_keeps_its_model_until_it_ends(rig: Rig) -> None:
    node, router = await rig.pair(Shelf)
    frames = stream(router, "items", multiplexed_model_id="a")
    await until(lambda: "a" in node.target.get_model.loaded())
    other = [model_call(router, "hold", model_id) for model_id in ("b", "c")]
    await until(lambda: holders(node) >= {"a", "b", "c"})
    await until(lambda: "b" in node.target.get_model.loaded())
    assert "del first" in Shelf.log
    assert not {"del a", "del b"} & set(Shelf.log)
    node.target.gate.set()
    assert [await one for one in other] == ["b", "c"]
    async for _ in frames:
        pass
    await until(lambda: len(Shelf.log) >= 2)


async def test_a_batch_has_the_model_of_its_requests_and_keeps_it_until_it_ends(rig: Rig) -> None:
    node, router = await rig.pair(Shelf)
    words = [
        call(router, "together", word, multiplexed_model_id=model_id)
        for word, model_id in (("x", "a"), ("y", "b"), ("z", "a"), ("w", "b"))
    ]
    await until(lambda: "a" in node.target.get_model.loaded())
    await node.target.get_model("c")
    assert "a" in node.target.get_model.loaded()
    node.target.gate.set()
    assert [await word for word in words] == ["a x", "b y", "a z", "b w"]


async def test_a_loader_that_raises_fails_its_requests_and_no_others(rig: Rig) -> None:
    _, router = await rig.pair(Shelf)
    for _ in range(2):
        with pytest.raises(OSError, match="no such file"):
            await model_call(router, "ask", "bad")
    assert Shelf.loads["bad"] == 2
    assert await answer(router, "ask", "good") == "good on r0"


async def test_a_request_without_a_model_is_told_how_to_name_one(rig: Rig) -> None:
    _, router = await rig.pair(Shelf)
    with pytest.raises(ValueError, match="serve_multiplexed_model_id"):
        await call(router, "ask")


async def test_a_stopping_replica_unloads_its_models(rig: Rig) -> None:
    node, router = await rig.pair(Shelf)
    await answer(router, "ask", "a")
    await node.stop()
    assert sorted(Shelf.log) == ["del a", "del first"]


@pytest.mark.parametrize(
    "name",
    ("serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id", "SERVE_MULTIPLEXED_MODEL_ID"),
)
async def test_an_http_header_names_the_model(rig: Rig, name: str) -> None:
    door = await rig.door(await rig.node(Shelf))
    head = f"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{name}: m1\r\n\r\n"
    assert (await door.raw(head.encode())).endswith(b"m1")
    assert (await door.raw(head.replace(f"{name}: m1\r\n", "").encode())).endswith(b"no model")
    assert (await door.raw(head.replace(": m1\r\n", ":\r\n").encode())).endswith(b"no model")


@serve.deployment
class Asker:
    def __init__(self, shelf: serve.DeploymentHandle[Any]) -> None:
        self.shelf = shelf

    async def __call__(self, model_id: str) -> list[str]:
        named = self.shelf.options(multiplexed_model_id=model_id)
        return [await self.shelf.remote(), await named.remote(), await named.ask.remote()]


@pytest.fixture
def _ended() -> Iterator[None]:
    yield
    serve.shutdown()


@pytest.mark.usefixtures("_ended")
def test_a_call_names_the_model_by_an_option_of_its_handle() -> None:
    shelf = serve.deployment(Shelf, num_replicas=2)
    asker = serve.run(Asker.bind(shelf.bind()), _local_testing_mode=True)
    assert asker.options(multiplexed_model_id="mine").remote("m").result()[:2] == ["no model", "m"]
    where = {asker.remote("m").result()[2] for _ in range(5)}
    assert len(where) == 1
    assert Shelf.loads["m"] == 1
