"""What a replica tells of itself reaches every router, without anybody asking."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.rig import Rig, call, envelope, until

from remora.errors import RemoraError
from remora.replica.connection import ReplicaConnection
from remora.replica.notices import MAX_NOTICE_BYTES
from remora.wire.messages import FrameKind


class App:
    def which(self) -> str:
        import remora

        return str(remora.get_replica_context().replica_id)


async def test_a_caller_is_told_right_after_its_greeting(rig: Rig) -> None:
    node = await rig.node(App)
    node.replica.announce(models=["a", "b"], metadata={"gpu": 3}, stats={"tokens": 1.5})
    router = await rig.routed(node)
    (link,) = router.members.links.values()
    await until(lambda: link.model_ids)
    assert link.model_ids == {"a", "b"}
    assert link.metadata == {"gpu": 3}
    assert link.stats == {"tokens": 1.5}


async def test_a_change_reaches_every_caller_once_for_many_announcements(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await rig.node(App)
    routers = [await rig.routed(node) for _ in range(2)]
    links = [link for router in routers for link in router.members.links.values()]
    written: list[int] = []
    write = ReplicaConnection.write

    def noted(self: ReplicaConnection, kind: int, *rest: Any) -> None:
        written.append(kind)
        write(self, kind, *rest)

    monkeypatch.setattr(ReplicaConnection, "write", noted)
    node.replica.announce(models=["a"])
    node.replica.announce(stats={"n": 1})
    node.replica.announce(models=["a", "b"])
    await until(lambda: all(link.model_ids == {"a", "b"} for link in links))
    assert all(link.stats == {"n": 1} for link in links)
    assert written == [FrameKind.NOTICE] * 2


async def test_an_announcement_of_the_same_sends_nothing(rig: Rig) -> None:
    node, router = await rig.pair(App)
    (link,) = router.members.links.values()
    node.replica.announce(models=["a"])
    await until(lambda: link.model_ids)
    link.model_ids = frozenset("marked")
    node.replica.announce(models=["a"])
    await call(router, "which")
    assert link.model_ids == frozenset("marked")


async def test_requests_for_a_model_go_where_it_is(rig: Rig) -> None:
    nodes = [await rig.node(App) for _ in range(3)]
    router = await rig.routed(*nodes)
    nodes[1].replica.announce(models=["m"])
    await until(lambda: any(link.model_ids for link in router.members.links.values()))
    for _ in range(10):
        chosen = router.policy.choose(
            envelope("which", multiplexed_model_id="m"), router._open, router.rng
        )
        assert chosen is not None
        assert chosen.replica_id == nodes[1].replica.replica_id


async def test_what_a_lost_connection_told_is_forgotten(rig: Rig) -> None:
    node, router = await rig.pair(App)
    (link,) = router.members.links.values()
    node.replica.announce(models=["a"])
    await until(lambda: link.model_ids)
    node.die()
    await until(lambda: not link.model_ids)


@pytest.mark.parametrize("stats", [{"lock": asyncio.Event}, {"text": "x" * MAX_NOTICE_BYTES}])
async def test_what_cannot_be_told_is_refused_and_changes_nothing(
    rig: Rig, stats: dict[str, Any]
) -> None:
    node = await rig.node(App)
    node.replica.announce(models=["a"])
    with pytest.raises(RemoraError, match="tells its routers"):
        node.replica.announce(stats=stats)
    assert node.replica.notices.current.models == ("a",)
    assert node.replica.notices.current.stats == {}
