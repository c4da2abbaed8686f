"""Applications that use ASGI in every way that is allowed, and in some that are not."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any, cast

import pytest
from tests.integration.http_client import ask, read_answer, request
from tests.integration.rig import Rig, until

from remora.replica.work import Work
from remora.wire.window import WINDOW_BYTES

START = {"type": "http.response.start", "status": 200, "headers": []}


class App:
    """Hands each request to the method that its path names."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.gate = asyncio.Event()

    def __remora_asgi_app__(self) -> Any:
        return self.app

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("not spoken here")
        await getattr(self, scope["path"].strip("/"))(receive, send)

    async def text(self, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"text"})

    async def words(self, receive: Any, send: Any) -> None:
        await self._send_all(send, memoryview(array("i", range(10))), more=False)

    async def streamed_words(self, receive: Any, send: Any) -> None:
        await self._send_all(send, memoryview(array("d", range(50_000))), more=True)

    async def many_strings(self, receive: Any, send: Any) -> None:
        await self._send_all(send, ["x"] * 70_000, more=True)

    async def status_as_text(self, receive: Any, send: Any) -> None:
        await send({**START, "status": "no number"})
        await send({"type": "http.response.body", "body": b"x"})

    async def _send_all(self, send: Any, body: Any, more: bool) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": body, "more_body": more})
        if more:
            await send({"type": "http.response.body"})

    async def small_parts(self, receive: Any, send: Any) -> None:
        """Parts of many sizes, some of them in one turn of the loop, and then a wait."""
        await send(START)
        for number in range(3000):
            body = b"%d" % (number % 10) * (number % 300 + (5000 if number % 100 == 50 else 0))
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if number % 7 == 0:
                await asyncio.sleep(0)
        await self.gate.wait()
        await send({"type": "http.response.body"})

    async def burst_that_fails(self, receive: Any, send: Any) -> None:
        await send(START)
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise RuntimeError("on purpose")

    async def reads_on(self, receive: Any, send: Any) -> None:
        await receive()
        await self.text(receive, send)
        while (message := await receive())["type"] != "http.disconnect":
            self.events.append(message)
        self.events.append("over")

    async def two_senders(self, receive: Any, send: Any) -> None:
        await send(START)

        async def many() -> None:
            for _ in range(8):
                body = bytes(WINDOW_BYTES // 2)
                await send({"type": "http.response.body", "body": body, "more_body": True})

        await asyncio.gather(many(), many(), many())
        await send({"type": "http.response.body"})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/words", array("i", range(10)).tobytes()),
        ("/streamed_words", array("d", range(50_000)).tobytes()),
    ],
)
async def test_a_view_of_larger_elements_is_sent_as_bytes(rig: Rig, path: str, body: bytes) -> None:
    door = await rig.door(await rig.node(App))
    assert (await ask(door, path)).body == body
    assert (await ask(door, "/text")).body == b"text"


@pytest.mark.parametrize("path", ("/many_strings", "/status_as_text"))
async def test_what_cannot_be_sent_fails_its_own_request_alone(rig: Rig, path: str) -> None:
    node = await rig.node(App)
    door = await rig.door(node)
    connection = next(iter(node.replica._connections), None)
    reader, writer = await door.connect()
    writer.write(request(path))
    answer = await asyncio.wait_for(reader.read(65536), 5)
    assert b"Traceback" not in answer
    writer.close()
    assert (await ask(door, "/text")).body == b"text"
    await until(lambda: node.replica.ongoing == 0)
    if connection is not None:
        assert connection in node.replica._connections


async def test_an_app_that_reads_on_after_its_answer_gives_its_slot_back(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    door = await rig.door(node)
    reader, writer = await door.connect()
    writer.write(
        request("/reads_on", "POST", transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    )
    assert (await read_answer(reader)).body == b"text"
    await until(lambda: node.target.events[-1:] == ["over"])
    await until(lambda: node.replica.ongoing == 0)
    writer.write(request("/text"))
    assert (await read_answer(reader)).body == b"text"
    writer.close()


async def test_an_app_that_reads_on_while_its_client_stalls_gives_its_slot_back(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    door = await rig.door(node)
    reader, writer = await door.connect()
    writer.write(request("/reads_on", "POST", transfer_encoding="chunked") + b"3\r\nabc\r\n")
    assert (await read_answer(reader)).body == b"text"
    await until(lambda: node.replica.ongoing == 0)
    writer.close()


async def test_no_sender_of_several_waits_for_ever(rig: Rig) -> None:
    node = await rig.node(App)
    door = await rig.door(node)
    assert len((await ask(door, "/two_senders")).body) == 24 * (WINDOW_BYTES // 2)
    await until(lambda: node.replica.ongoing == 0)


async def test_small_parts_are_joined_in_order_and_both_sides_count_alike(rig: Rig) -> None:
    node = await rig.node(App)
    door = await rig.door(node)
    reader, writer = await door.connect()
    writer.write(request("/small_parts"))
    await reader.readuntil(b"\r\n\r\n")
    expected = b"".join(
        b"%d" % (number % 10) * (number % 300 + (5000 if number % 100 == 50 else 0))
        for number in range(3000)
    )
    got, num_chunks = b"", 0
    while len(got) < len(expected):
        size = int(await asyncio.wait_for(reader.readline(), 5), 16)
        got += (await reader.readexactly(size + 2))[:-2]
        num_chunks += 1
    assert got == expected
    assert num_chunks < 1000
    (work,) = [work for one in node.replica._connections for work in one._work.values()]
    (client,) = door.state.connections
    exchange = cast(Any, client).active
    assert isinstance(work, Work)
    # What was sent and not given back yet is what the reader has counted since its last grant.
    await until(lambda: work._window + exchange.consumed == WINDOW_BYTES)
    node.target.gate.set()
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"0\r\n\r\n"
    writer.close()


async def test_what_was_sent_in_the_turn_of_a_failure_still_leaves_before_it(rig: Rig) -> None:
    door = await rig.door(await rig.node(App))
    data = await door.raw(request("/burst_that_fails"))
    assert data.endswith(b"3\r\nxxx\r\n")
