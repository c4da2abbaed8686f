"""Which requests are made again when a replica dies in the middle, bodies and routes included."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from tests.integration.http_client import ask, read_answer, request
from tests.integration.rig import Door, Node, Rig, call, stream, until

from remora.errors import ReplicaDiedError
from remora.method import method
from remora.proxy.connection import ClientConnection
from remora.proxy.presence import Presence
from remora.replica.connection import ReplicaConnection
from remora.replica.work import Work
from remora.wire.framing import RawFrame

LARGE = 300_000


class App:
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.gate = asyncio.Event()
        self.begun = 0
        self.taken = 0

    async def _hold(self) -> str:
        self.begun += 1
        await self.gate.wait()
        return self.name

    @method(idempotent=True)
    async def twice(self) -> str:
        return await self._hold()

    async def once(self) -> str:
        return await self._hold()

    @method(idempotent=True)
    async def items(self) -> Any:
        yield await self._hold()


class Upload(App):
    """Takes a body only after its gate has opened, or at once for `/greedy`."""

    @method(idempotent=True)
    async def __call__(self, request: Request) -> str:
        if request.url.path == "/greedy":
            parts = request.stream()
            self.taken += len(await anext(parts))
            await self._hold()
            return self.name
        await self._hold()
        return f"{self.name} {len(await request.body())}"


class Careless(Upload):
    async def __call__(self, request: Request) -> str:
        return await super().__call__(request)


class Routes(App):
    def __remora_asgi_app__(self) -> Any:
        app = FastAPI()
        app.post("/twice")(self.twice)
        app.post("/once")(self.once)
        return app


async def lose_one(rig: Rig, code: Any, **fields: Any) -> tuple[Node, Node, Any]:
    """A door to the first of two replicas; `heir` answers at once."""
    dying, heir = await rig.node(code, "dying"), await rig.node(code, "heir")
    heir.target.gate.set()
    return dying, heir, await rig.door(dying, **fields)


async def test_a_marked_method_is_called_again_and_another_is_not(rig: Rig) -> None:
    dying, heir = await rig.node(App, "dying"), await rig.node(App, "heir")
    heir.target.gate.set()
    router = await rig.routed(dying)
    twice, once, items = call(router, "twice"), call(router, "once"), stream(router, "items")
    await until(lambda: dying.target.begun == 3)
    dying.die()
    router.update(rig.route(heir))
    assert await twice == "heir"
    assert twice.envelope.attempt == 1
    assert [item async for item in items] == ["heir"]
    with pytest.raises(ReplicaDiedError, match=r"@method\(idempotent=True\)"):
        await once
    assert heir.target.begun == 2
    assert router.counts.retried == {"replica_died": 2, "never_started": 0, "turned_away": 0}


async def test_a_marked_route_is_asked_again_and_the_answer_says_so(rig: Rig) -> None:
    dying, heir, door = await lose_one(rig, Routes)
    twice = asyncio.create_task(ask(door, "/twice", "POST"))
    once = asyncio.create_task(ask(door, "/once", "POST"))
    await until(lambda: dying.target.begun == 2)
    dying.die()
    door.router.update(rig.route(heir))
    again, failed = await twice, await once
    assert (again.status, again.body, again.headers["x-remora-attempts"]) == (200, b'"heir"', "2")
    assert (failed.status, "x-remora-attempts" in failed.headers) == (500, False)
    assert "x-remora-attempts" not in (await ask(door, "/twice", "POST")).headers


async def test_an_upload_that_was_never_begun_goes_elsewhere_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, heir, door = await lose_one(rig, Careless)
    seen: list[RawFrame] = []
    # As if the process were busy: what arrives is never looked at.
    monkeypatch.setattr(ReplicaConnection, "on_frame", lambda _, frame: seen.append(frame))
    upload = asyncio.create_task(ask(door, "/", "POST", bytes(LARGE)))
    await until(lambda: seen)
    link = next(iter(door.router.members.links.values()))
    await dying.replica.drain()
    await until(lambda: link.leaving)
    monkeypatch.undo()
    dying.die()
    door.router.update(rig.route(heir))
    answer = await upload
    assert (answer.status, answer.body) == (200, f"heir {LARGE}".encode())
    assert dying.target.begun == 0
    assert door.router.counts.retried["never_started"] == 1


async def test_an_upload_that_was_turned_away_goes_elsewhere_whole(rig: Rig) -> None:
    full, heir, door = await lose_one(rig, Careless)
    full.replica.turns_away = True
    upload = asyncio.create_task(ask(door, "/", "POST", bytes(LARGE)))
    await until(lambda: door.router.num_waiting == 1)
    door.router.update(rig.route(full, heir))
    answer = await upload
    assert (answer.status, answer.body) == (200, f"heir {LARGE}".encode())


async def test_an_idempotent_upload_is_made_again_while_none_of_it_was_taken(rig: Rig) -> None:
    dying, heir, door = await lose_one(rig, Upload)
    upload = asyncio.create_task(ask(door, "/", "POST", bytes(LARGE)))
    await until(lambda: dying.target.begun == 1)
    dying.die()
    door.router.update(rig.route(heir))
    answer = await upload
    assert (answer.status, answer.body) == (200, f"heir {LARGE}".encode())
    assert answer.headers["x-remora-attempts"] == "2"


@pytest.mark.parametrize("code", (Upload, Careless))
async def test_an_upload_is_not_made_again_once_part_of_it_was_taken(rig: Rig, code: Any) -> None:
    dying, heir, door = await lose_one(rig, code)
    upload = asyncio.create_task(ask(door, "/greedy", "POST", bytes(LARGE)))
    await until(lambda: dying.target.taken)
    dying.die()
    door.router.update(rig.route(heir))
    assert (await upload).status == 500
    assert heir.target.begun == 0


async def test_an_upload_that_may_not_repeat_fails_with_a_replica_that_took_none_of_it(
    rig: Rig,
) -> None:
    dying, heir, door = await lose_one(rig, Careless)
    upload = asyncio.create_task(ask(door, "/", "POST", bytes(LARGE)))
    await until(lambda: dying.target.begun == 1)
    dying.die()
    door.router.update(rig.route(heir))
    assert (await upload).status == 500
    assert heir.target.begun == 0


async def test_a_replica_that_dies_between_leave_and_body_ends_the_upload_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica has granted room and the client has sent nothing yet: its answer is a 500,
    and what it sends after that disturbs nobody."""
    dying, heir, door = await lose_one(rig, Upload)
    granted = asyncio.Event()
    grant = Work._grant_upload

    def granting(work: Work) -> None:
        grant(work)
        granted.set()

    monkeypatch.setattr(Work, "_grant_upload", granting)
    reader, writer = await door.connect()
    writer.write(request("/greedy", "POST", content_length=str(LARGE)))
    await granted.wait()
    await until(lambda: any(_is_begun(each) for each in door.state.connections))
    dying.die()
    door.router.update(rig.route(heir))
    assert (await read_answer(reader)).status == 500
    writer.write(bytes(LARGE) + request("/greedy", "GET"))
    assert (await read_answer(reader)).body == b"heir"
    writer.close()


async def test_a_router_that_dies_stops_what_runs_for_it(rig: Rig) -> None:
    node, router = await rig.pair(App, "one")
    pending = call(router, "once")
    await until(lambda: node.target.begun == 1)
    router.disconnect()
    await until(lambda: node.replica.ongoing == 0)
    with pytest.raises(ReplicaDiedError):
        await pending


async def test_promises_of_a_replica_are_kept_when_it_is_gone(rig: Rig) -> None:
    node, router = await rig.pair(App, "one")
    link = next(iter(router.members.links.values()))
    assert link.promises.methods == ["items", "twice"]
    node.die()
    await until(lambda: link.channel is None)
    assert link.promises.methods == ["items", "twice"]


def _is_begun(connection: Any) -> bool:
    return connection.active is not None and connection.active.answered


def is_any_paused(door: Door) -> bool:
    return any(cast(ClientConnection, each).inlet.is_paused for each in door.state.connections)


@pytest.mark.parametrize("leave", ("close", "abort"))
async def test_an_upload_whose_client_leaves_while_it_waits_never_starts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    monkeypatch.setattr(Presence, "watch_every_s", 0.02)
    node = await rig.node(Careless, max_ongoing=1)
    door = await rig.door(node)
    running = asyncio.create_task(ask(door))
    await until(lambda: node.target.begun == 1)
    _, writer = await door.connect()
    # All of it fits into the buffers of the sockets, so that closing sends the end at once.
    writer.write(request("/", "POST", bytes(100_000)))
    await writer.drain()
    await until(lambda: is_any_paused(door))
    assert door.router.num_waiting == 1
    getattr(writer.transport, leave)()
    await until(lambda: door.router.num_waiting == 0)
    node.target.gate.set()
    assert (await running).status == 200
    assert node.target.begun == 1


async def test_an_upload_that_waits_for_long_is_taken_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Presence, "watch_every_s", 0.001)
    node = await rig.node(Careless, max_ongoing=1)
    door = await rig.door(node)
    running = asyncio.create_task(ask(door))
    await until(lambda: node.target.begun == 1)
    upload = asyncio.create_task(ask(door, "/", "POST", bytes(LARGE)))
    await until(lambda: is_any_paused(door))
    looks = 0
    look = Presence._look

    def counted(presence: Presence) -> None:
        nonlocal looks
        looks += 1
        look(presence)

    monkeypatch.setattr(Presence, "_look", counted)
    await until(lambda: looks > 3)
    node.target.gate.set()
    assert (await running).status == 200
    assert (await upload).body == f" {LARGE}".encode()
