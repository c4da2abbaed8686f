"""Who gets a request, as users say: over HTTP and by handle, built in or written by them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.e2e.instances import Instance
from tests.e2e.load import get
from tests.e2e.waiting import until_async

import remora as serve
from remora.config import RequestRouterConfig
from remora.experimental.consistent_hash_router import ConsistentHashRouter
from remora.experimental.round_robin_router import RoundRobinRouter
from remora.request_router import PendingRequest, RequestRouter, RunningReplica

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


@serve.deployment(num_replicas=3)
class Who:
    def record_replica_metadata(self) -> dict[str, int]:
        return {"pid": os.getpid()}

    def record_routing_stats(self) -> dict[str, int]:
        return {"rank": serve.get_replica_context().rank.rank}

    async def __call__(self, request: Any = None) -> int:
        return os.getpid()


class LowestRank(RequestRouter):
    """Goes to the replica whose statistics say rank 0; to nobody before they are there."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        return [[r for r in candidate_replicas if r.routing_stats.get("rank") == self.rank]]

    def initialize_state(self, rank: int = 0) -> None:
        self.rank = rank


class Raises(RequestRouter):
    async def choose_replicas(self, *_: Any) -> Any:
        raise ValueError("lost its map")


def routed_by(chosen: Any, **kwargs: Any) -> Any:
    config = RequestRouterConfig(request_router_class=chosen, request_router_kwargs=kwargs)
    return Who.options(request_router_config=config).bind()


async def answers(url: str, count: int, **headers: str) -> list[Any]:
    return [(await get(url, headers=headers)).json for _ in range(count)]


async def test_a_session_stays_with_its_replica_over_http_and_by_handle(shared: Instance) -> None:
    async with shared.running(routed_by(ConsistentHashRouter), "sticky") as url:
        homes = {s: set(await answers(url, 4, **{"X-Session-ID": s})) for s in "abcdef"}
        assert all(len(pids) == 1 for pids in homes.values())
        assert len(set.union(*homes.values())) > 1
        # Another process has the same ring.
        handle = shared.handle("Who", "sticky")
        for session, pids in homes.items():
            assert await handle.options(session_id=session).remote() in pids
        assert (await answers(url, 1, x_session_id="a"))[0] in homes["a"]


async def test_a_class_of_the_user_decides_in_proxies_and_scripts(shared: Instance) -> None:
    class Local(LowestRank):
        pass

    async with shared.running(routed_by(Local), "custom") as url:
        seen = set(await answers(url, 6))
        assert len(seen) == 1
        handle = shared.handle("Who", "custom")
        assert {await handle.remote() for _ in range(6)} == seen


async def test_an_existing_handle_follows_a_change_of_the_router(shared: Instance) -> None:
    path = f"{__name__}:LowestRank"
    async with shared.running(routed_by(path, rank=0), "change-router") as url:
        pids = await shared.pids("change-router")
        handle = shared.handle("Who", "change-router")
        first = await handle.remote()
        await shared.deploy(routed_by(path, rank=1), "change-router", route="/change-router")
        second = await until_async(lambda: _other(handle, first), "the handle follows")
        assert set(await answers(url, 3)) == {second}
        await shared.deploy(routed_by(RoundRobinRouter), "change-router", route="/change-router")
        await until_async(lambda: _all_of(handle, pids), "the handle takes turns")
        # Nothing of this needed a new process.
        assert await shared.pids("change-router") == pids


async def _other(handle: Any, than: int) -> Any:
    pid = await handle.remote()
    return pid if pid != than else None


async def _all_of(handle: Any, pids: set[int]) -> Any:
    return [await handle.remote() for _ in pids] == sorted(pids) or {
        await handle.remote() for _ in pids
    } == pids


async def test_a_router_that_raises_takes_nothing_down(shared: Instance) -> None:
    async with shared.running(routed_by(Raises), "raises") as url:
        assert set(await answers(url, 6)) <= await shared.pids("raises")
        log = "".join(p.read_text(errors="replace") for p in shared.home.logs.iterdir())
        assert log.count("ValueError: lost its map") == 1
        metrics = (await get(f"{shared.url}/-/metrics")).body.decode()
        assert (
            "serve_num_request_router_errors_total{"
            'application="raises",deployment="Who",reason="choose_replicas: ValueError"} 6'
        ) in metrics
