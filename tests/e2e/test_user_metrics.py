"""Metrics of the user's code on the front door of a real instance, also after a scale-down."""

from __future__ import annotations

import re

import aiohttp
import pytest
from tests.e2e.instances import Instance
from tests.e2e.waiting import until_async

import remora as serve
from remora import metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

CALLS = 40


@serve.deployment(num_replicas=2, max_ongoing_requests=1)
class Fisher:
    def __init__(self) -> None:
        self.caught = metrics.Counter("fish_caught", tag_keys=("kind",))
        self.nets = metrics.Gauge("nets_out")
        self.nets.set(1)

    async def __call__(self, request: object) -> str:
        self.caught.inc(2, tags={"kind": "eel"})
        return "caught"


async def test_no_count_is_lost_when_a_replica_goes(shared: Instance) -> None:
    async def rows(name: str) -> dict[str, float]:
        async with aiohttp.ClientSession() as session:
            answer = await session.get(f"{shared.url}/-/metrics")
            found = re.findall(rf"^{name}(\{{.*\}}) (.+)$", await answer.text(), re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    async def total() -> bool:
        return sum((await rows("fish_caught_total")).values()) == 2 * CALLS

    await shared.run(Fisher.bind(), "fish")
    async with shared.deleting("fish") as url, aiohttp.ClientSession() as session:
        for _ in range(CALLS):
            async with session.get(url) as answer:
                assert await answer.text() == "caught"
        await until_async(total, "every replica tells what it counted")
        told = await rows("fish_caught_total")
        assert all(
            'application="fish",deployment="Fisher",replica="fish/Fisher#' in k for k in told
        )
        assert all('kind="eel"' in labels for labels in told)
        assert set((await rows("nets_out")).values()) == {1}
        await shared.run(Fisher.options(num_replicas=1).bind(), "fish")
        await shared.replicas("fish", 1)
        await until_async(total, "what the one that is gone had counted is told")

        async def one_gauge() -> bool:
            return len(await rows("nets_out")) == 1

        await until_async(one_gauge, "its gauge is gone")
