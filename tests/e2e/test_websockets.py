"""WebSockets of real instances: replicas that are killed or leave, clients that do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.e2e.instances import Instance
from tests.e2e.load import get
from tests.e2e.processes import kill, usage
from tests.e2e.waiting import until_async
from tests.e2e.websocket_app import Sockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

MEGABYTE = 1024 * 1024


def opened(url: str, path: str = "/echo", **options: Any) -> Any:
    return connect(url.replace("http", "ws", 1) + path, proxy=None, **options)


async def close_code(client: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed) as caught:
        await asyncio.wait_for(client.recv(), 20)
    received = caught.value.rcvd
    return None if received is None else received.code


async def echo(client: ClientConnection, text: str) -> None:
    await client.send(text)
    assert await asyncio.wait_for(client.recv(), 10) == text


async def test_a_killed_replica_closes_with_1011_and_the_next_one_serves(shared: Instance) -> None:
    async with shared.running(Sockets.bind(), "ws-killed") as url:
        async with opened(url) as client:
            pid = int(await client.recv())
            await echo(client, "é")
            kill(pid)
            assert await close_code(client) == 1011
        async with opened(url) as client:
            assert int(await client.recv()) != pid
            await echo(client, "again")


async def test_an_upgrade_lets_sockets_finish_and_then_closes_them_with_1012(
    shared: Instance,
) -> None:
    async with (
        shared.running(Sockets.bind(), "ws-upgrade") as url,
        opened(url) as short,
        opened(url) as long,
    ):
        old = int(await short.recv())
        await long.recv()
        deploy = asyncio.create_task(
            shared.deploy(Sockets.bind(), "ws-upgrade", route="/ws-upgrade", code_version="2")
        )

        async def of_new() -> bool:
            async with opened(url) as client:
                return int(await client.recv()) != old

        await until_async(of_new, "new sockets are those of the new version")
        await echo(short, "while it drains")
        await short.close()
        assert await close_code(long) == 1012
        await deploy


async def test_the_end_of_an_application_closes_with_1012(shared: Instance) -> None:
    url = await shared.run(Sockets.bind(), "ws-delete")
    async with opened(url) as client:
        await client.recv()
        deleting = asyncio.create_task(shared.delete("ws-delete"))
        assert await close_code(client) == 1012
        await deleting


async def test_a_client_that_never_reads_costs_bounded_memory_and_nobody_else(
    shared: Instance,
) -> None:
    async with shared.running(Sockets.bind(), "ws-flood") as url:
        (pid,) = await shared.pids("ws-flood")
        async with opened(url, "/flood", compression=None, max_queue=1) as stalled:
            seen = -1

            async def is_still() -> bool:
                nonlocal seen
                before, seen = seen, int((await get(f"{url}/sent")).body)
                await asyncio.sleep(0.2)
                return seen > 10 and before == seen

            await until_async(is_still, "the handler waits")
            assert seen * 100_000 < 20 * MEGABYTE
            held = usage(pid)
            assert held is not None
            assert held.rss_bytes < 300 * MEGABYTE
            async with opened(url) as client:
                await client.recv()
                await echo(client, "for others as ever")
            stalled.transport.abort()
