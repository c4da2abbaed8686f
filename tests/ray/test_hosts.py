"""Hosts that are apart, as network namespaces, with TLS between them: one is cut off and comes back.

What takes longer is in `scripts/namespaces.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.e2e.load import client
from tests.e2e.waiting import until_async
from tests.ray.apps import Counted
from tests.ray.far import FarInstance, NumberedLoad, nodes_of, ran, told
from tests.ray.hosts import Hosts, why_not

from remora.transport.membership import join_by_folder, mine
from remora.wire.proof import NONCE_BYTES, ProvingCaller, Reason, refusal


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(2) as made:
        yield made


async def answer_of(address: str, port: int, data: bytes) -> bytes:
    """What somebody without a certificate hears."""
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except (OSError, TimeoutError):
        return b""
    finally:
        writer.close()


@pytest.mark.timeout(240)
async def test_a_host_that_is_cut_off_fails_no_request(hosts: Hosts) -> None:
    instance = await asyncio.to_thread(FarInstance, hosts, hosts.certify())
    await instance.wait_joined()
    (folder := hosts.folder / "ran").mkdir()
    # One at a time: what is too much for a front door's own host crosses to the other one.
    app = Counted.options(num_replicas=2, max_ongoing_requests=1).bind(str(folder))
    url = await instance.run(app, "app")

    async def lie(*numbers: int) -> bool:
        found = await nodes_of(instance, "Counted", "app")
        return sorted(found.values()) == list(numbers)

    await until_async(lambda: lie(1, 1), "one replica on each host", 60.0)
    await instance.wait_doors()
    # Without a certificate the right token opens none of the ports that processes listen on.
    join_by_folder(instance.home)
    for host in hosts.hosts:
        # Ray's own ports in the same processes say what they like.
        ports = host.ports("remora: ")
        sides = [
            ProvingCaller(mine().token, bytes(NONCE_BYTES), f"{host.address} {port}")
            for port in ports
        ]
        heard = [
            await answer_of(host.address, port, side.begin())
            for port, side in zip(ports, sides, strict=True)
        ]
        ours = [each for each in heard if each[:4] == refusal(Reason.TLS_ALONE)[:4]]
        assert len(ours) >= 2, f"agent and replica, of {ports}, said {heard}"
        assert set(ours) == {refusal(Reason.TLS_ALONE)}
    async with client() as session:
        gets, posts = (
            NumberedLoad(session, url, rate, method)
            for rate, method in ((50.0, "GET"), (5.0, "POST"))
        )
        tasks = [asyncio.create_task(each.generate()) for each in (gets, posts)]
        await gets.more(50)
        hosts.hosts[1].pull()
        await until_async(lambda: lie(2), "both replicas are on the host that is left", 60.0)
        hosts.hosts[1].plug()
        await gets.more(50)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for each in (gets, posts):
            await each.drain()
    assert not gets.failures, told(gets.failures)
    assert not [key for key, number in ran(folder).items() if number > 1 and "POST" in key]
