"""What a replica counts while it answers, and a front door that tells of everything."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.http_client import ask
from tests.integration.rig import Node, Rig, call, stream, until

import remora as serve
from remora import metrics
from remora.observe.metrics import CONTENT_TYPE
from remora.wire.codec import unpack
from remora.wire.metrics import Family, MetricsReport

pytestmark = pytest.mark.one_loop
ME = ("default", "App", "default/App#r0")


class App:
    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self) -> str:
        return "fine"

    async def held(self) -> str:
        await self.opened.wait()
        return "held"

    async def fails(self) -> None:
        raise KeyError("no such fish")

    async def items(self) -> Any:
        for number in range(3):
            yield number

    @serve.batch(max_batch_size=2)
    async def batched(self, numbers: list[int]) -> list[int]:
        return numbers

    @serve.multiplexed(max_num_models_per_replica=1)
    async def model(self, model_id: str) -> str:
        return model_id

    async def models(self, *model_ids: str) -> None:
        for model_id in model_ids:
            await self.model(model_id)


class Counting:
    def __init__(self) -> None:
        self.calls = metrics.Counter(
            "calls", description="How often it was called.", tag_keys=("model", "route")
        )
        self.calls.set_default_tags({"model": "m"})
        self.threads = metrics.Gauge("threads")

    async def __call__(self) -> None:
        self.calls.inc()

    def plain(self) -> None:
        self.calls.inc()
        self.threads.set(1)


async def counted(node: Node) -> dict[str, Family]:
    body = await node.replica.control["metrics"](b"")  # type: ignore[misc]
    return {family.name: family for family in unpack(body, MetricsReport).families}


async def test_requests_are_counted_by_how_they_ended(rig: Rig) -> None:
    node, router = await rig.pair(App)
    assert await call(router, "__call__", route="/shop") == "fine"
    assert [item async for item in stream(router, "items")] == [0, 1, 2]
    with pytest.raises(KeyError):
        await call(router, "fails")
    held = [call(router, "held") for _ in range(2)]
    await until(lambda: node.replica.ongoing == 2)
    families = await counted(node)
    assert families["serve_replica_processing_queries"].rows == {ME: [2]}
    held[0].cancel()
    await until(lambda: node.replica.ongoing == 1)
    node.target.opened.set()
    assert await held[1] == "held"
    await until(lambda: node.replica.ongoing == 0)
    families = await counted(node)
    good = families["serve_deployment_request_counter"].rows
    assert good == {(*ME, ""): [2], (*ME, "/shop"): [1]}
    errors = families["serve_deployment_error_counter"].rows
    assert errors == {(*ME, "", "KeyError"): [1]}
    assert families["serve_deployment_cancelled_counter"].rows == {(*ME, ""): [1]}
    latency = families["serve_deployment_processing_latency_ms"].rows[*ME, ""]
    assert sum(latency[:-1]) == 4
    assert families["serve_replica_processing_queries"].rows == {ME: [0]}


async def test_models_and_batches_are_counted(rig: Rig) -> None:
    node, router = await rig.pair(App)
    await call(router, "models", "a", "b", "a", "a")
    await asyncio.gather(*(call(router, "batched", number) for number in range(4)))
    families = await counted(node)
    assert families["serve_multiplexed_get_model_requests_counter"].rows == {ME: [4]}
    assert families["serve_multiplexed_models_load_counter"].rows == {ME: [3]}
    assert families["serve_multiplexed_models_unload_counter"].rows == {ME: [2]}
    assert families["serve_num_multiplexed_models"].rows == {ME: [1]}
    assert families["serve_registered_multiplexed_model_id"].rows == {(*ME, "a"): [1]}
    loads = families["serve_multiplexed_model_load_latency_ms"].rows[ME]
    assert sum(loads[:-1]) == 3
    function = (*ME, "App.batched")
    sizes = families["serve_actual_batch_size"]
    assert sizes.rows[function][-1] == 4
    assert families["serve_batches_processed"].rows[function][0] >= 2
    assert families["serve_batch_queue_length"].rows == {function: [0]}


async def test_metrics_of_the_users_code_are_those_of_their_replica(rig: Rig) -> None:
    node, router = await rig.pair(Counting)
    await asyncio.gather(*(call(router, "__call__", route="/shop") for _ in range(3)))
    await call(router, "plain")
    families = await counted(node)
    assert families["calls"].labels == ("application", "deployment", "replica", "model", "route")
    assert families["calls"].rows == {(*ME, "m", "/shop"): [3], (*ME, "m", ""): [1]}
    assert families["threads"].rows == {ME: [1]}
    assert families["calls"].text == "How often it was called."
    body = await node.replica.control["stop"](b"")  # type: ignore[misc]
    last = {family.name: family for family in unpack(body, MetricsReport).families}
    assert last == {"calls": families["calls"]}


async def test_without_models_and_batches_nothing_is_said_of_them(rig: Rig) -> None:
    node = await rig.node(App)
    assert not [name for name in await counted(node) if "batch" in name or "model" in name]


async def test_the_front_door_tells_what_it_counts_while_no_controller_answers(rig: Rig) -> None:
    node = await rig.node(App)
    door = await rig.door(node)
    assert (await ask(door, "/")).status == 200
    answer = await ask(door, "/-/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE.decode()
    text = answer.body.decode()
    assert "\nserve_metrics_complete 0\n" in text
    assert 'serve_num_http_requests_total{application="default",method="GET"' in text
    assert text.count("# TYPE serve_num_http_requests_total") == 1


async def test_metrics_keep_their_place_among_pipelined_answers(rig: Rig) -> None:
    node = await rig.node(App)
    door = await rig.door(node)
    request = b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n"
    close = b"connection: close\r\n"
    data = await door.raw(
        request % (b"/-/metrics", b"")
        + request % (b"/-/livez", b"")
        + request % (b"/-/metrics", b"content-length: 3\r\n")
        + b"abc"
        + request % (b"/", close)
    )
    bodies = data.split(b"HTTP/1.1 200 ")[1:]
    assert len(bodies) == 4
    assert b"serve_metrics_complete" in bodies[0]
    assert b"success" in bodies[1]
    assert b"serve_metrics_complete" in bodies[2]
    assert bodies[3].endswith(b"fine")


async def test_a_reader_that_leaves_harms_nobody(rig: Rig) -> None:
    node = await rig.node(App)
    door = await rig.door(node)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        asked.set()
        await answered.wait()
        return ""

    door.client.metrics.read = slow  # type: ignore[method-assign]
    _, writer = await door.connect()
    writer.write(b"GET /-/metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    await asked.wait()
    writer.close()
    await until(lambda: not door.state.connections)
    answered.set()
    assert (await ask(door, "/")).status == 200
