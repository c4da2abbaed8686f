"""Two proxies on one socket: who takes which connection, what a death costs, one limit for both."""

from __future__ import annotations

import asyncio
import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.e2e.apps import Echo, Held
from tests.e2e.conftest import _folder
from tests.e2e.instances import Instance
from tests.e2e.load import Answer, ask, client, load
from tests.e2e.processes import kill
from tests.e2e.waiting import until_async, until_true

from remora.config import HTTPOptions
from remora.errors import BackPressureError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

LIMIT = 10


@pytest.fixture(scope="module")
def pair() -> Iterator[Instance]:
    folder = _folder()
    instance = Instance(folder, HTTPOptions(port=0, num_proxies=2))
    try:
        yield instance
    finally:
        try:
            instance.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


async def both_up(pair: Instance, *, without: int = 0) -> tuple[int, int]:
    def pids(status: object) -> tuple[int, int] | None:
        found = tuple(proxy.pid for proxy in status.proxies)  # type: ignore[attr-defined]
        return found if len(found) == 2 and all(found) and without not in found else None

    found: tuple[int, int] = await pair.wait(pids, "two proxies run")
    return found


def connections(pair: Instance) -> tuple[int, ...]:
    """How many each proxy has, as they tell each other."""
    return struct.unpack("=2I", pair.home.tally_file.read_bytes())


async def test_connections_are_spread_over_both(pair: Instance) -> None:
    await both_up(pair)
    async with pair.running(Echo.bind(), "spread") as url, client() as session:
        answers = await asyncio.gather(*(ask(session, f"{url}?delay=0.2") for _ in range(5)))
        assert {answer.status for answer in answers} == {200}
        host, port = pair.url.removeprefix("http://").split(":")
        writers = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(40)]
        await until_true(lambda: sum(connections(pair)) >= 40, "all are accepted")
        assert min(connections(pair)) >= 10, connections(pair)
        for writer in writers:
            writer.close()


async def test_killing_one_of_two_refuses_no_connection(pair: Instance) -> None:
    async with pair.running(Echo.options(max_ongoing_requests=50).bind("v1", 0.02), "kill") as url:
        victim, _ = await both_up(pair)
        async with load(url, force_close=True) as traffic:
            await traffic.more(100)
            in_flight = traffic.in_flight
            kill(victim)
            await traffic.more(100)
            await both_up(pair, without=victim)
            await traffic.more(100)
    refused = [a for a in traffic.failures if isinstance(a.error, aiohttp.ClientConnectorError)]
    assert refused == []
    assert len(traffic.failures) <= in_flight, (in_flight, traffic.failures)


async def test_one_limit_holds_for_both_and_for_a_script(pair: Instance, tmp_path: Path) -> None:
    await both_up(pair)
    opened = tmp_path / "opened"
    app = Held.options(max_ongoing_requests=2, max_queued_requests=LIMIT).bind(str(opened))
    async with pair.running(app, "limit") as url, client(force_close=True) as session:
        handle = pair.handle("Held", "limit").held
        over_http = [asyncio.create_task(ask(session, url)) for _ in range(40)]
        called = []
        for _ in range(20):
            called.append(asyncio.ensure_future(handle.remote()))
            await asyncio.sleep(0.001)
        more = [asyncio.create_task(ask(session, url)) for _ in range(40)]
        tasks: list[asyncio.Future[Any]] = [*over_http, *called, *more]

        def num_pending() -> int:
            return sum(not task.done() for task in tasks)

        # Nobody is answered yet, so whatever has an end was refused.
        await until_true(lambda: num_pending() <= LIMIT + 2, "the others are refused")
        opened.touch()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    held = [e for e in ends if getattr(e, "body", e) in ("held", b"held")]
    refused = [e for e in ends if isinstance(e, Answer) and e.status == 503]
    raised = [e for e in ends if isinstance(e, BackPressureError)]
    assert len(held) + len(refused) + len(raised) == len(ends), ends
    assert 2 < len(held) <= LIMIT + 2
    assert b"max_queued_requests is 10" in refused[0].body


async def test_refusals_come_at_once_and_say_when_to_come_back(
    pair: Instance, tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    app = Held.options(max_ongoing_requests=1, max_queued_requests=2).bind(str(opened))
    async with pair.running(app, "refuse") as url, client() as session:
        waiting: list[asyncio.Task[Answer]] = []

        def is_full() -> bool:
            # One that is refused may have met a proxy whose places are on their way to it.
            waiting.append(asyncio.create_task(ask(session, url)))
            return sum(not task.done() for task in waiting[:-1]) == 3

        await until_true(is_full, "one runs and two wait")
        took = []
        for _ in range(100):
            async with session.get(url) as answer:
                assert answer.status == 503
                assert 1 <= int(answer.headers["retry-after"]) <= 60
            refused = await ask(session, url)
            took.append(refused.ended - refused.began)
        metrics = await ask(session, f"{pair.url}/-/metrics")
        opened.touch()
        await asyncio.gather(*waiting)
    assert b'serve_num_refused_requests_total{application="refuse"' in metrics.body
    took.sort()
    # Half of them: what a busy machine does to the others is not ours.
    assert took[len(took) // 2] < 0.005, took[:: math.ceil(len(took) / 10)]


async def test_metrics_are_those_of_all_proxies_and_replicas(pair: Instance) -> None:
    async with pair.running(Echo.bind("v1", 0.0), "counted") as url:
        for _ in range(40):
            async with client(force_close=True) as session:
                await ask(session, url)
        name = 'application="counted"'
        expected = (
            f'serve_num_http_requests_total{{{name},method="GET",route="/counted",status_code="200"}} 40',
            f'serve_deployment_status{{{name},deployment="Echo"}} 6',
            "serve_metrics_complete 1",
            "serve_metrics_missing_processes 0",
        )

        async def all_told() -> bool:
            # A connection for each question: any proxy may be asked.
            async with client(force_close=True) as session:
                lines = (await ask(session, f"{pair.url}/-/metrics")).body.decode().splitlines()
            good = [one for one in lines if one.startswith("serve_deployment_request_counter")]
            return {*expected} <= {*lines} and any(
                name in one and one.endswith(" 40") for one in good
            )

        await until_async(all_told, "every answer was counted, once")
