"""The controller brings together what all processes count, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.control.metrics import ANSWER_LIMIT_S, KEPT_S, MAX_KEPT_ROWS, MetricsCollector
from remora.errors import ConnectionLostError
from remora.observe.metrics import counter
from remora.wire.control import Subscription
from remora.wire.metrics import Family, MetricsAnswer, MetricsReport

pytestmark = pytest.mark.virtual_time


def report(name: str, count: float) -> MetricsReport:
    return MetricsReport((counter(name, (), {(): count}),))


def values(families: list[Family]) -> dict[str, float]:
    return {family.name: row[0] for family in families for row in family.rows.values()}


async def answering(collector: MetricsCollector, name: str, count: float) -> None:
    async with aclosing(collector.follow(Subscription(name, 1))) as calls:
        async for call in calls:
            collector.on_answer(MetricsAnswer(call.number, report("n", count).families))


def asking(make: Callable[[], Awaitable[MetricsReport]]) -> MetricsCollector:
    return MetricsCollector(lambda: [make], lambda: [counter("own", (), {(): 7})])


async def test_replicas_and_followers_are_added_up_but_for_the_reader() -> None:
    async def replica() -> MetricsReport:
        return report("n", 1)

    collector = asking(replica)
    tasks = [asyncio.create_task(answering(collector, f"p{i}", 10.0**i)) for i in (1, 2)]
    await asyncio.sleep(0)
    assert values(await collector.read())["n"] == 111
    found = values(await collector.read(but="p2"))
    assert (found["n"], found["own"]) == (11, 7)
    assert found["serve_metrics_missing_processes"] == 0
    for task in tasks:
        task.cancel()


async def test_who_is_gone_or_does_not_answer_is_left_out_and_counted() -> None:
    async def gone() -> MetricsReport:
        raise ConnectionLostError("gone")

    collector = asking(gone)
    silent = collector.follow(Subscription("stuck", 1))
    listening = asyncio.ensure_future(anext(silent))
    await asyncio.sleep(0)
    began = asyncio.get_running_loop().time()
    found = values(await collector.read())
    assert found == {"own": 7, "serve_metrics_missing_processes": 2}
    assert asyncio.get_running_loop().time() - began <= ANSWER_LIMIT_S + 0.01
    await listening
    await silent.aclose()


async def test_readers_that_come_together_are_answered_by_one_round() -> None:
    asked: list[float] = []

    async def slow() -> MetricsReport:
        asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.5)
        return report("n", len(asked))

    collector = asking(slow)
    first = await asyncio.gather(*(collector.read() for _ in range(20)))
    assert [values(each)["n"] for each in first] == [1] * 20
    # Rounds that take long take their time off.
    assert values(await collector.read())["n"] == 1
    await asyncio.sleep(5.1)
    assert values(await collector.read())["n"] == 2
    assert len(asked) == 2


async def test_what_a_replica_counted_last_is_told_for_a_while_after_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def last(name: str, value: float, kind: str = "counter", rows: int = 1) -> MetricsReport:
        made: dict[tuple[str, ...], list[float]] = {(str(n),): [value] for n in range(rows)}
        return MetricsReport((Family(name, kind, ("replica",), made, by_user=True),))

    async def gone() -> MetricsReport:
        raise ConnectionLostError("gone")

    collector = asking(gone)
    collector.keep(last("n", 5))
    collector.keep(MetricsReport())
    assert values(await collector.read())["n"] == 5
    await asyncio.sleep(KEPT_S / 2)
    collector.keep(last("m", 1))
    # Told once that it has two meanings.
    collector.keep(last("m", 1, "gauge"))
    for _ in range(2):
        await asyncio.sleep(KEPT_S / 2 + 1)
        assert "n" not in values(await collector.read())
    assert "m" not in values(await collector.read())
    collector.keep(last("old", 1, rows=MAX_KEPT_ROWS // 2 + 1))
    collector.keep(last("new", 1, rows=MAX_KEPT_ROWS // 2 + 1))
    await asyncio.sleep(KEPT_S / 2)
    found = values(await collector.read())
    assert ("new" in found, "old" in found) == (True, False)
    assert [r.getMessage().startswith("Metric m ") for r in caplog.records] == [True]


async def test_the_state_of_everything_is_among_the_metrics(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    families = {family.name: family for family in await r.controller.metrics.read()}
    assert families["serve_application_status"].rows == {("default",): [6]}
    assert families["serve_deployment_status"].rows == {("default", "Model"): [6]}
    healthy = families["serve_deployment_replica_healthy"].rows
    assert [row for _, row in sorted(healthy.items())] == [[1], [1]]
    requests = families["serve_deployment_request_counter"].rows
    assert len(requests) == 2
