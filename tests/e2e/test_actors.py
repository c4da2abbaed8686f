"""Objects that the replicas of a deployment share, in processes of their own."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from tests.e2e.instances import Instance
from tests.e2e.load import get
from tests.e2e.processes import kill

import remora as serve
from remora.config import DeploymentActorConfig
from remora.exceptions import RayServeException

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


class Counter:
    """Counts for all replicas."""

    def __init__(self, start: int, *, step: int = 1) -> None:
        self.value = start
        self.step = step
        self.context = serve.get_deployment_actor_context()

    def add(self) -> int:
        # Two at a time would lose counts: calls come one after the other.
        value = self.value
        value += self.step
        self.value = value
        return value

    def told(self) -> dict[str, Any]:
        return {
            "owner": str(self.context.deployment_id),
            "name": self.context.actor_name,
            "pid": os.getpid(),
        }

    def fail(self) -> None:
        raise KeyError("from the actor")


class Waits:
    """Has coroutines, and so takes many calls at a time."""

    def __init__(self) -> None:
        self.all_here = asyncio.Event()
        self.here = 0

    async def meet(self, number: int) -> int:
        self.here += 1
        if self.here == number:
            self.all_here.set()
        await self.all_here.wait()
        return self.here


@serve.deployment(
    num_replicas=2,
    deployment_actors=[
        DeploymentActorConfig(
            name="counter", actor_class=Counter, init_args=(10,), init_kwargs={"step": 2}
        ),
        {"name": "waits", "actor_class": "tests.e2e.test_actors:Waits"},
    ],
)
class Counts:
    def __init__(self) -> None:
        # It is there already.
        self.counter = serve.get_deployment_actor("counter")

    async def __call__(self, request: Any) -> Any:
        match request.query_params.get("what", "add"):
            case "told":
                return await self.counter.told.remote()
            case "fail":
                try:
                    await self.counter.fail.remote()
                except KeyError as error:
                    return str(error)
            case "meet":
                waits = serve.get_deployment_actor("waits")
                return await asyncio.gather(*(waits.meet.remote(5) for _ in range(5)))
            case "unknown":
                try:
                    serve.get_deployment_actor("countr")
                except ValueError as error:
                    return str(error)
        return await self.counter.add.remote()


async def test_all_replicas_share_an_actor(shared: Instance) -> None:
    async with shared.running(Counts.bind(), "counts") as url:
        answers = await asyncio.gather(*(get(url) for _ in range(20)))
        assert sorted(each.json for each in answers) == list(range(12, 52, 2))
        told = (await get(f"{url}?what=told")).json
        assert (told["owner"], told["name"]) == ("counts/Counts", "counter")
        assert (await get(f"{url}?what=fail")).body.decode() == "'from the actor'"
        assert (await get(f"{url}?what=meet")).json == [5] * 5
        unknown = (await get(f"{url}?what=unknown")).body.decode()
        assert (
            "no deployment actor 'countr'. Did you mean 'counter'? It has: counter, waits"
            in unknown
        )


async def test_an_actor_that_dies_starts_anew_and_replicas_stay(shared: Instance) -> None:
    async with shared.running(Counts.bind(), "dies") as url:
        for _ in range(3):
            await get(url)
        pid = (await get(f"{url}?what=told")).json["pid"]
        before = await shared.pids("dies")
        kill(pid)
        await shared.replicas("dies", len(before), {pid})
        assert (await get(url)).json == 12
        assert len(before & await shared.pids("dies")) == len(before) - 1


async def test_outside_of_them_there_is_none() -> None:
    with pytest.raises(RayServeException, match="only inside"):
        serve.get_deployment_actor_context()
    with pytest.raises(RayServeException, match="only inside"):
        serve.get_deployment_actor("counter")
