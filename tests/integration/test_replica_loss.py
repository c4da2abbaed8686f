"""What becomes of calls when replicas die, leave, drain, or come, and when snapshots change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.rig import Node, Rig, call, stream, until

from remora.core.request.retries import MAX_ATTEMPTS
from remora.core.request.retry_budget import RESERVE
from remora.errors import DeploymentUnavailableError, ReplicaDiedError
from remora.replica.connection import ReplicaConnection
from remora.router.unknown import UNKNOWN_WAIT_S
from remora.wire.framing import RawFrame


class App:
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.gate = asyncio.Event()
        self.begun = 0

    async def name_of(self) -> str:
        self.begun += 1
        return self.name

    async def held(self) -> str:
        self.begun += 1
        await self.gate.wait()
        return self.name

    async def items(self, n: int) -> Any:
        self.begun += 1
        for i in range(n):
            yield i
        await self.gate.wait()
        yield self.name


async def two(rig: Rig, **fields: Any) -> tuple[Node, Node, Any]:
    one, other = await rig.node(App, "one"), await rig.node(App, "other")
    return one, other, await rig.routed(one, other, **fields)


async def test_begun_call_that_may_not_repeat_fails_with_the_replica(rig: Rig) -> None:
    node = await rig.node(App, "one")
    router = await rig.routed(node)
    pending = call(router, "held")
    await until(lambda: node.target.begun == 1)
    node.die()
    with pytest.raises(ReplicaDiedError, match="r0"):
        await pending


@pytest.mark.parametrize("by", ("deployment", "request"))
async def test_idempotent_call_goes_to_another_replica(rig: Rig, by: str) -> None:
    one, other, router = await two(rig, idempotent=by == "deployment")
    calls = [call(router, "held", idempotent=by == "request") for _ in range(6)]
    await until(lambda: one.target.begun + other.target.begun == 6 and one.target.begun)
    one.die()
    other.target.gate.set()
    assert [await pending for pending in calls] == ["other"] * 6
    assert {pending.envelope.attempt for pending in calls} == {0, 1}


async def test_a_stream_that_has_delivered_is_never_repeated(rig: Rig) -> None:
    node = await rig.node(App, "one")
    router = await rig.routed(node, idempotent=True)
    items = stream(router, "items", 2)
    assert [await anext(items), await anext(items)] == [0, 1]
    node.die()
    with pytest.raises(ReplicaDiedError):
        await anext(items)


async def test_a_killer_request_is_given_few_replicas(rig: Rig) -> None:
    nodes = [await rig.node(App, str(i)) for i in range(MAX_ATTEMPTS + 1)]
    router = await rig.routed(*nodes, idempotent=True)
    pending = call(router, "held")
    for attempt in range(MAX_ATTEMPTS):
        await until(lambda: any(node.target.begun for node in nodes))
        assert pending.envelope.attempt == attempt
        victim = next(node for node in nodes if node.target.begun)
        nodes.remove(victim)
        victim.die()
    with pytest.raises(ReplicaDiedError):
        await pending
    assert [node.target.begun for node in nodes] == [0]


async def test_retry_budget_bounds_the_second_tries(rig: Rig) -> None:
    dying = await rig.node(App, "one", max_ongoing=1000)
    router = await rig.routed(dying, idempotent=True)
    calls = [call(router, "held") for _ in range(300)]
    await until(lambda: dying.target.begun == 300)
    router.budget.balance = 7.0
    dying.die()
    heir = await rig.node(App, "heir", max_ongoing=1000)
    heir.target.gate.set()
    router.update(rig.route(heir, idempotent=True))
    ends = await asyncio.gather(*map(_end, calls))
    assert (ends.count("heir"), ends.count("died")) == (7, 293)
    assert RESERVE > 7


async def _end(pending: Any) -> Any:
    try:
        return await pending
    except ReplicaDiedError:
        return "died"


async def test_calls_that_a_leaving_replica_never_saw_are_repeated(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, router = await two(rig)
    router.update(rig.route(one))
    other_link_gone = len(router.members.links) == 1
    assert other_link_gone
    # As if the process were busy: what arrives from now on is never looked at.
    seen: list[RawFrame] = []
    monkeypatch.setattr(ReplicaConnection, "on_frame", lambda self, frame: seen.append(frame))
    calls = [call(router, "name_of") for _ in range(3)]
    await until(lambda: len(seen) == 3)
    link = next(iter(router.members.links.values()))
    draining = asyncio.create_task(one.replica.drain())
    await until(lambda: link.leaving)
    await draining
    monkeypatch.undo()
    one.die()
    router.update(rig.route(other))
    assert await asyncio.wait_for(asyncio.gather(*map(_end, calls)), 5) == ["other"] * 3
    assert one.target.begun == 0


async def test_drain_finishes_what_was_begun_and_turns_the_rest_away(rig: Rig) -> None:
    one, other, router = await two(rig)
    router.update(rig.route(one))
    unary, items = call(router, "held"), stream(router, "items", 1)
    assert await anext(items) == 0
    await until(lambda: one.target.begun == 2)
    draining = asyncio.create_task(one.replica.drain())
    link = next(iter(router.members.links.values()))
    await until(lambda: link.leaving)
    late = call(router, "name_of")
    assert router.num_waiting == 1
    router.update(rig.route(one, other))
    assert await late == "other"
    assert not draining.done()
    one.target.gate.set()
    assert await unary == "one"
    assert [item async for item in items] == ["one"]
    await asyncio.wait_for(draining, 1)
    # An answer tells of room, but not of room for more in a replica that leaves.
    assert [await call(router, "name_of") for _ in range(4)] == ["other"] * 4
    assert one.target.begun == 2


async def test_a_router_that_missed_the_goodbye_is_turned_away(rig: Rig) -> None:
    one, other, _ = await two(rig)
    await one.replica.drain()
    router = await rig.routed(one, other)
    assert [await call(router, "name_of") for _ in range(8)] == ["other"] * 8
    assert one.target.begun == 0


async def test_a_drain_bothers_nobody_who_has_not_greeted(rig: Rig) -> None:
    node = await rig.node(App)
    reader, writer = await asyncio.open_unix_connection(node.path)
    await until(lambda: node.replica._connections)
    await node.replica.drain()
    writer.close()
    assert await reader.read() == b""


async def test_removed_replica_finishes_its_calls_and_gets_no_more(rig: Rig) -> None:
    one, other, router = await two(rig)
    router.update(rig.route(one))
    pending = call(router, "held")
    await until(lambda: one.target.begun == 1)
    router.update(rig.route(other))
    await until(lambda: router._open)
    assert [await call(router, "name_of") for _ in range(5)] == ["other"] * 5
    assert len(one.replica._connections) > 0
    one.target.gate.set()
    assert await pending == "one"
    # Its connection goes with its last call.
    await until(lambda: not one.replica._connections)


async def test_added_replica_takes_what_waits(rig: Rig) -> None:
    one = await rig.node(App, "one", max_ongoing=1)
    router = await rig.routed(one)
    held, waiting = call(router, "held"), call(router, "name_of")
    await until(lambda: one.target.begun == 1)
    other = await rig.node(App, "other", max_ongoing=1)
    router.update(rig.route(one, other))
    assert await waiting == "other"
    one.target.gate.set()
    assert await held == "one"


async def test_calls_wait_while_there_is_no_replica(rig: Rig) -> None:
    router = rig.router()
    router.update(rig.route())
    pending = call(router, "name_of")
    assert router.num_waiting == 1
    router.update(rig.route(await rig.node(App, "one")))
    assert await pending == "one"


async def test_calls_before_the_first_snapshot_wait_for_it(rig: Rig) -> None:
    router = rig.router()
    pending = call(router, "name_of")
    assert router.num_waiting == 1
    router.update(rig.route(await rig.node(App, "one")))
    assert await pending == "one"


async def test_call_to_an_unknown_deployment_fails_in_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.router.unknown.UNKNOWN_WAIT_S", 0.01)
    with pytest.raises(DeploymentUnavailableError, match="no application"):
        await call(rig.router(), "name_of")


async def test_each_call_to_an_unknown_deployment_has_its_own_full_wait(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.router.unknown.UNKNOWN_WAIT_S", 0.1)
    router = rig.router()
    loop = asyncio.get_running_loop()
    first = call(router, "name_of")
    # Late by more than half: with one wait for both, it would fail with the first.
    await asyncio.sleep(0.06)
    began = loop.time()
    second = call(router, "name_of")
    with pytest.raises(DeploymentUnavailableError):
        await first
    assert not second.done()
    with pytest.raises(DeploymentUnavailableError):
        await second
    assert 0.09 <= loop.time() - began < 1
    assert router.num_waiting == 0


async def test_call_to_a_deleted_deployment_fails_soon_but_waits_for_its_successor(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.router.unknown.DELETED_WAIT_S", 0.01)
    node = await rig.node(App, "one")
    router = await rig.routed(node)
    router.close("it was deleted")
    with pytest.raises(DeploymentUnavailableError, match="it was deleted"):
        await asyncio.wait_for(call(router, "name_of"), UNKNOWN_WAIT_S / 2)
    with pytest.raises(DeploymentUnavailableError, match="it was deleted"):
        await asyncio.wait_for(router.wait_known(), UNKNOWN_WAIT_S / 2)
    monkeypatch.undo()
    waiting = call(router, "name_of")
    router.update(rig.route(node))
    assert await waiting == "one"


async def test_deleted_deployment_fails_what_waits_and_finishes_what_runs(rig: Rig) -> None:
    one = await rig.node(App, "one", max_ongoing=1)
    router = await rig.routed(one)
    held, waiting = call(router, "held"), call(router, "name_of")
    await until(lambda: one.target.begun == 1)
    router.close("it was deleted")
    with pytest.raises(DeploymentUnavailableError, match="deleted"):
        await waiting
    one.target.gate.set()
    assert await held == "one"
    assert not router.is_known


async def test_raised_limit_lets_waiting_calls_in(rig: Rig) -> None:
    one = await rig.node(App, "one", max_ongoing=1)
    router = await rig.routed(one)
    calls = [call(router, "held") for _ in range(4)]
    await until(lambda: one.target.begun == 1)
    # Whichever side hears of it first.
    router.update(rig.route(one, max_ongoing_requests=4))
    await until(lambda: one.replica.turned_away)
    await one.reconfigure(4)
    await until(lambda: one.target.begun == 4)
    one.target.gate.set()
    assert [await pending for pending in calls] == ["one"] * 4


async def test_lowered_limit_holds_at_once_for_new_calls(rig: Rig) -> None:
    one = await rig.node(App, "one", max_ongoing=4)
    router = await rig.routed(one)
    calls = [call(router, "held") for _ in range(3)]
    await until(lambda: one.target.begun == 3)
    await one.reconfigure(1)
    calls += [call(router, "held") for _ in range(3)]
    await until(lambda: router.num_waiting == 3)
    assert one.target.begun == 3
    one.target.gate.set()
    assert [await pending for pending in calls] == ["one"] * 6


async def test_a_replica_that_never_greets_gets_no_calls(rig: Rig) -> None:
    """A kernel completes connections to a dead process whose socket somebody still holds."""
    one = await rig.node(App, "one")
    silent = await rig.node(App, "silent")
    assert silent.server is not None
    silent.die()
    import socket

    held = socket.socket(socket.AF_UNIX)
    held.bind(silent.path)
    held.listen(10)
    try:
        router = rig.router()
        router.update(rig.route(one, silent))
        await until(lambda: len(router._open) == 1)
        assert [await call(router, "name_of") for _ in range(8)] == ["one"] * 8
    finally:
        held.close()


async def test_a_peer_of_another_version_is_not_asked_in_a_hurry(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await rig.node(App, "one"), await rig.node(App, "other")
    asked = 0

    def accept() -> Any:
        nonlocal asked
        asked += 1
        made = ReplicaConnection(other.replica)

        def turn_away(frame: RawFrame) -> bool:
            made._turn_away("another version")
            return False

        made._takes = turn_away  # type: ignore[method-assign]
        return made

    assert other.server is not None
    other.server.close()
    import pathlib

    pathlib.Path(other.path).unlink()
    other.server = await asyncio.get_running_loop().create_unix_server(accept, other.path)
    router = rig.router()
    router.update(rig.route(one, other))
    await until(lambda: asked >= 2)
    for _ in range(50):
        assert await call(router, "name_of") == "one"
    assert asked < 10


async def test_a_replica_that_comes_back_is_used_again(rig: Rig) -> None:
    one = await rig.node(App, "one")
    router = await rig.routed(one)
    link = next(iter(router.members.links.values()))
    before = link.channel
    for connection in list(one.replica._connections):
        connection._transport.abort()  # type: ignore[union-attr]
    await until(lambda: link.channel is not before)
    assert await asyncio.wait_for(_end(call(router, "name_of")), 5) == "one"
