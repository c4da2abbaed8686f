"""What the user's code says of itself is asked for in time, and its failures are contained."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from remora.config import RequestRouterConfig
from remora.errors import ReplicaStartError
from remora.replica.self_report import SelfReport
from remora.replica.user_code import UserCode
from remora.types import DeploymentID

QUICK = RequestRouterConfig(
    request_routing_stats_period_s=0.001, request_routing_stats_timeout_s=0.05
)


class Announced:
    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.more = asyncio.Event()

    def __call__(self, **what: Any) -> None:
        self.heard.append(what)
        self.more.set()

    async def wait_count(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.heard) < count:
                self.more.clear()
                await self.more.wait()


async def begun(target: Any, config: RequestRouterConfig = QUICK) -> tuple[SelfReport, Announced]:
    announced = Announced()
    report = SelfReport(announced)
    await report.begin(UserCode(DeploymentID("D"), target), config)
    return report, announced


async def test_metadata_is_asked_once_and_statistics_again_and_again() -> None:
    class Model:
        count = 0

        def record_replica_metadata(self) -> dict[str, Any]:
            return {"gpu": 1}

        async def record_routing_stats(self) -> dict[str, Any]:
            self.count += 1
            return {"count": self.count}

    report, announced = await begun(Model())
    assert announced.heard[0] == {"metadata": {"gpu": 1}}
    await announced.wait_count(4)
    report.stop()
    assert announced.heard[1:4] == [{"stats": {"count": n}} for n in (1, 2, 3)]
    assert sum("metadata" in heard for heard in announced.heard) == 1


async def test_an_object_without_the_hooks_says_nothing() -> None:
    report, announced = await begun(object())
    assert report._task is None
    assert announced.heard == []


@pytest.mark.parametrize("answer", [None, 3, ValueError("no metadata")])
async def test_metadata_that_fails_is_a_failed_start(answer: Any) -> None:
    class Model:
        def record_replica_metadata(self) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    with pytest.raises(ReplicaStartError, match="record_replica_metadata"):
        await begun(Model())


async def test_statistics_that_fail_are_said_once_until_they_work_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Model:
        count = 0

        def record_routing_stats(self) -> Any:
            self.count += 1
            if self.count in (2, 3, 5):
                raise ValueError(f"failed at {self.count}")
            return {"count": self.count}

    caplog.set_level(logging.WARNING, "remora.replica")
    report, announced = await begun(Model())
    await announced.wait_count(3)
    report.stop()
    assert [heard["stats"]["count"] for heard in announced.heard[:3]] == [1, 4, 6]
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2
    assert "failed at 2" in said[0]
    assert "failed at 5" in said[1]


async def test_statistics_that_take_too_long_are_given_up_and_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Model:
        count = 0

        async def record_routing_stats(self) -> Any:
            self.count += 1
            if self.count == 1:
                await asyncio.sleep(60)
            return {"count": self.count}

    caplog.set_level(logging.WARNING, "remora.replica")
    report, announced = await begun(Model())
    await announced.wait_count(1)
    report.stop()
    assert announced.heard[0] == {"stats": {"count": 2}}
    assert "request_routing_stats_timeout_s=0.05" in caplog.text


async def test_a_thread_that_takes_too_long_is_not_joined_by_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = threading.Event()

    class Model:
        count = 0

        def record_routing_stats(self) -> Any:
            self.count += 1
            if self.count == 1:
                gate.wait(10)
            return {"count": self.count}

    caplog.set_level(logging.WARNING, "remora.replica")
    model = Model()
    report, announced = await begun(model)
    async with asyncio.timeout(5):
        while report._recording is None or report._recording._late is None:
            await asyncio.sleep(0.001)
    assert model.count == 1
    gate.set()
    await announced.wait_count(1)
    report.stop()
    assert announced.heard[0] == {"stats": {"count": 2}}


async def test_another_period_holds_from_now_on() -> None:
    class Model:
        def record_routing_stats(self) -> Any:
            return {}

    report, announced = await begun(Model(), RequestRouterConfig())
    await announced.wait_count(1)
    report.follow(QUICK)
    await announced.wait_count(3)
    report.stop()
