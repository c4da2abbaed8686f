"""Steady HTTP load from the test's own event loop, with every answer kept."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.e2e.waiting import until_true


@dataclass(frozen=True)
class Answer:
    """How one request ended.

    Attributes:
        began: monotonic seconds.
        ended: monotonic seconds.
        status: of the answer; 0: there was none.
        body: of the answer.
        error: why there was no answer.
    """

    began: float
    ended: float
    status: int
    body: bytes = b""
    error: Exception | None = None

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that tells of every failure."""
    timeout = aiohttp.ClientTimeout(total=options.pop("timeout_s", 30))
    connector = aiohttp.TCPConnector(limit=0, **options)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        # By itself this client repeats a GET on a new connection when a kept one breaks, and so
        # hides what the tests are after.
        session._retry_connection = False
        yield session


async def ask(session: aiohttp.ClientSession, url: str, **request: Any) -> Answer:
    """Send one request; failures are answers too."""
    began = time.monotonic()
    try:
        async with session.request(request.pop("method", "GET"), url, **request) as response:
            body = await response.read()
            return Answer(began, time.monotonic(), response.status, body)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Answer(began, time.monotonic(), 0, error=error)


async def get(url: str, **options: Any) -> Answer:
    """Send one GET on a connection of its own."""
    async with client(force_close=True) as session:
        return await ask(session, url, **options)


class Load:
    """Requests at a fixed rate, whether or not earlier ones were answered."""

    def __init__(self, session: aiohttp.ClientSession, url: str, rate: float, method: str) -> None:
        self._session = session
        self._method = method
        self._url = url
        self._rate = rate
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers: list[Answer] = []

    @property
    def in_flight(self) -> int:
        """Requests without an answer so far."""
        return len(self._tasks)

    @property
    def failures(self) -> list[Answer]:
        """Everything but 200."""
        return [answer for answer in self.answers if answer.status != 200]

    async def more(self, number: int, timeout_s: float = 20.0) -> None:
        """Wait for that many more answers."""
        wanted = len(self.answers) + number
        await until_true(lambda: len(self.answers) >= wanted, f"{number} more answers", timeout_s)

    async def generate(self) -> None:
        """Send until cancelled."""
        due = time.monotonic()
        while True:
            assert self.in_flight < 4000, "answers do not come as quickly as requests go"
            task = asyncio.create_task(self._one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            due += 1 / self._rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _one(self) -> None:
        self.answers.append(await ask(self._session, self._url, method=self._method))

    async def drain(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def load(
    url: str, rate: float = 200.0, method: str = "GET", **options: Any
) -> AsyncIterator[Load]:
    """Keep `rate` requests per second up during the `with` block, and wait for all answers.

    Args:
        url: what to ask for.
        rate: requests per second.
        method: a POST is never repeated, so it shows what a GET would hide.
        options: of the connector; `force_close=True` makes a connection for each request.
    """
    async with client(**options) as session:
        made = Load(session, url, rate, method)
        generator = asyncio.create_task(made.generate())
        try:
            yield made
        finally:
            generator.cancel()
            await asyncio.wait([generator])
            await made.drain()
        assert generator.cancelled(), generator.exception()
