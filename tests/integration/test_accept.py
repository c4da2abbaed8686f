"""Several acceptors on one listening socket, as the proxies of an instance have them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.rig import until

from remora.proxy import accept
from remora.proxy.accept import Acceptor, Connections, Tally


class Silent(asyncio.Protocol):
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.proxy.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.proxy.connections.discard(self)


class Proxy:
    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        self.connections = Connections()
        self.sock: Any = sock
        self.tally = tally
        self.acceptor = Acceptor(
            self.sock, lambda: Silent(self), tally, lambda: len(self.connections)
        )
        self.connections.on_left = self.acceptor.tell

    def close(self) -> None:
        self.acceptor.close()
        for connection in list(self.connections):
            connection.transport.abort()
        self.sock.close()


@pytest.fixture
def listener() -> Any:
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    yield sock
    sock.close()


@pytest.fixture
async def proxies(listener: socket.socket, tmp_path: Path) -> AsyncIterator[list[Proxy]]:
    made = [Proxy(listener.dup(), Tally.in_file(tmp_path / "tally", i, 3)) for i in range(3)]
    yield made
    for proxy in made:
        proxy.close()
    await until(lambda: not any(proxy.connections for proxy in made))


Connect = Callable[[int], Awaitable[list[asyncio.StreamWriter]]]


@pytest.fixture
async def connect(listener: socket.socket) -> AsyncIterator[Connect]:
    """Open so many connections, which end with the test."""
    made: list[asyncio.StreamWriter] = []

    async def one() -> asyncio.StreamWriter:
        return (await asyncio.open_connection(*listener.getsockname()))[1]

    async def some(number: int) -> list[asyncio.StreamWriter]:
        made.extend(await asyncio.gather(*(one() for _ in range(number))))
        return made[-number:]

    yield some
    for client in made:
        client.transport.abort()
    await asyncio.sleep(0)


async def test_a_burst_is_spread_over_all(connect: Connect, proxies: list[Proxy]) -> None:
    for proxy in proxies:
        proxy.acceptor.start()
    clients = await connect(90)
    await until(lambda: sum(len(proxy.connections) for proxy in proxies) == 90)
    # On a busy machine one waits in vain now and then, and takes some of the others' share.
    assert [len(proxy.connections) for proxy in proxies] == [pytest.approx(30, abs=15)] * 3
    assert proxies[0].tally.others() == [len(proxy.connections) for proxy in proxies[1:]]
    for client in clients:
        client.close()
    await until(lambda: proxies[0].tally.others() == [0, 0])


async def test_those_who_do_not_come_are_not_waited_for(
    connect: Connect, proxies: list[Proxy]
) -> None:
    proxies[0].acceptor.start()
    clients = await connect(300)
    await until(lambda: len(proxies[0].connections) == 300, limit_s=2.0)
    for client in clients:
        client.close()


async def test_what_is_not_accepted_waits_for_the_others(
    connect: Connect, proxies: list[Proxy]
) -> None:
    clients = await connect(5)
    proxies[0].acceptor.close()
    proxies[1].acceptor.start()
    await until(lambda: len(proxies[1].connections) == 5)
    await proxies[1].acceptor.wait_closed()
    for client in clients:
        client.close()


async def test_without_room_for_files_it_goes_on_when_there_is_some(
    connect: Connect, proxies: list[Proxy], caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        """The socket, while the process has no descriptor left."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.times = 2

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def accept(self) -> Any:
            if self.times:
                self.times -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self.sock.accept()

    full: Any = Full(proxies[0].sock)
    proxies[0].acceptor._sock = full
    proxies[0].acceptor.start()
    clients = await connect(1)
    await until(lambda: len(proxies[0].connections) == 1)
    assert full.times == 0
    assert "Too many open files" in caplog.text
    for client in clients:
        client.close()


async def test_a_client_that_left_before_it_was_accepted_is_no_harm(
    connect: Connect, proxies: list[Proxy]
) -> None:
    (gone,) = await connect(1)
    gone.transport.abort()
    clients = await connect(1)
    proxies[0].acceptor.start()
    await until(lambda: len(proxies[0].connections) == 1)
    for client in clients:
        client.close()
    with contextlib.suppress(OSError):
        await gone.wait_closed()


async def test_a_client_that_never_greets_holds_no_end_up(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "_GREETING_LIMIT_S", 0.05)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    acceptor = Acceptor(
        listener, asyncio.Protocol, Tally(bytearray(4), 0, 1), lambda: 0, lambda: context
    )
    acceptor.start()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    await until(lambda: acceptor.tell() == 1)
    acceptor.close()
    async with asyncio.timeout(5):
        await acceptor.wait_closed()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
