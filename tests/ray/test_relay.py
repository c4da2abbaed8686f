"""Processes of a node wait for the controller, and leave; without a cluster."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.e2e.waiting import until_true

from remora.engine.ray.cluster import Cluster
from remora.engine.ray.relay import _BETWEEN_LOOKS_S, Relay
from remora.transport.channel import connect
from remora.transport.control import call_control, serve_control
from remora.transport.membership import Membership, join, mine


class Head(Cluster):
    """Says where the controller is."""

    address = b""
    asked = 0

    def get(self, key: str) -> bytes | None:
        self.asked += 1
        return self.address or None


async def test_many_wait_with_one_look_up_and_who_leaves_is_let_go(tmp_path: Path) -> None:
    head, serving = Head(), set()
    relay = Relay(head)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(writer)
        await relay.serve(reader, writer)
        serving.discard(writer)

    async def controller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(8))
        writer.close()

    begun = asyncio.get_running_loop().time()
    async with await asyncio.start_unix_server(serve, tmp_path / "relay"):
        clients = [await asyncio.open_unix_connection(tmp_path / "relay") for _ in range(20)]
        for _, writer in clients:
            writer.write(b"four")
        await until_true(lambda: head.asked >= 5, "the controller is looked for")
        for _, writer in clients[1:]:
            writer.close()
        await until_true(lambda: len(serving) == 1, "those who left are let go")
        took = asyncio.get_running_loop().time() - begun
        assert head.asked <= took / _BETWEEN_LOOKS_S + 2
        async with await asyncio.start_unix_server(controller, tmp_path / "controller"):
            head.address = f"unix:{tmp_path}/controller".encode()
            reader, writer = clients[0]
            writer.write(b"more")
            # What was sent while nobody was there comes first.
            assert await reader.read() == b"fourmore"
            writer.close()
            await until_true(lambda: not serving, "nothing is left")


class Number(msgspec.Struct):
    n: int


@pytest.fixture
def member() -> Iterator[None]:
    before = mine()
    join(Membership("here", "secret"))
    yield
    join(before)


async def echo(body: bytes) -> bytes:
    return body


async def test_who_asks_through_the_relay_needs_no_token(
    tmp_path: Path, member: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent proves it: a program may know none, or that of an instance before."""
    head, serving = Head(), set()
    relay = Relay(head)
    near = f"unix:{tmp_path}/relay"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(writer)
        await relay.serve(reader, writer)
        serving.discard(writer)

    async with await asyncio.start_unix_server(serve, tmp_path / "relay"):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            server = await serve_control(sock.dup(), {"echo": echo}, "secret")
            head.address = f"tcp:127.0.0.1:{sock.getsockname()[1]}".encode()
            channel = await connect(near, name="a program", token="of the one before")
            assert await call_control(channel, "echo", Number(3), Number, timeout_s=5) == Number(3)
            channel.close()
            server.close()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            # Somebody else's controller.
            server = await serve_control(sock.dup(), {"echo": echo}, "another")
            relay._address = f"tcp:127.0.0.1:{sock.getsockname()[1]}"
            told = f"No connection to {relay._address}: wrong cluster token"
            channel = await connect(near, name="a program")
            await until_true(lambda: told in caplog.text, "why it is not reached is told")
            channel.close()
            await until_true(lambda: not serving, "nothing is left")
            server.close()


async def test_a_stranger_at_the_port_of_the_controller_is_not_asked_again_at_once(
    tmp_path: Path, member: None
) -> None:
    head, knocks = Head(), 0
    relay = Relay(head)

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal knocks
        knocks += 1
        writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 10)
        writer.close()

    begun = asyncio.get_running_loop().time()
    async with (
        await asyncio.start_unix_server(relay.serve, tmp_path / "relay"),
        await asyncio.start_server(stranger, "127.0.0.1", 0) as server,
    ):
        port = server.sockets[0].getsockname()[1]
        head.address = f"tcp:127.0.0.1:{port}".encode()
        _, writer = await asyncio.open_unix_connection(tmp_path / "relay")
        await until_true(lambda: knocks > 0 and head.asked >= 15, "the controller is looked for")
        assert knocks <= 1 + asyncio.get_running_loop().time() - begun
        # Where it really is it is reached at once, however long the pause is.
        with socket.create_server(("127.0.0.1", 0)) as sock:
            control = await serve_control(sock.dup(), {"echo": echo}, "secret")
            relay._stranger = (relay._address, float("inf"))
            head.address = f"tcp:127.0.0.1:{sock.getsockname()[1]}".encode()
            channel = await connect(f"unix:{tmp_path}/relay", name="a program")
            assert await call_control(channel, "echo", Number(3), Number, timeout_s=5) == Number(3)
            channel.close()
            control.close()
        writer.close()
