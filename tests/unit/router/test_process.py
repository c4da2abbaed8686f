"""The routing clients of a process: when they are made, and when they are let go of."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from remora.errors import DeploymentUnavailableError, InstanceError
from remora.handle import DeploymentHandle
from remora.home import Home
from remora.response import DeploymentResponse
from remora.router import process
from remora.router.client import RoutingClient
from remora.router.process import background_client, forget_instance, routing_client, use_instance
from remora.types import DeploymentID


@pytest.fixture(autouse=True)
def in_an_instance(remora_home: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One whose controller is never there: clients try to reach it again and again."""
    monkeypatch.setattr(process, "_process", process._ProcessRouting())
    use_instance(Home.locate(), "tests")
    yield
    forget_instance()


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "remora-routing"]


def test_a_loop_that_ends_is_let_go_of() -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loops.append(weakref.ref(loop))
        assert routing_client(loop) is routing_client(loop)

    for _ in range(3):
        asyncio.run(main())
    assert process._process.clients == {}
    assert process._process.endings == {}
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


def test_a_loop_that_is_closed_without_a_word_is_let_go_of_by_the_next() -> None:
    async def main() -> None:
        client = routing_client(asyncio.get_running_loop())
        await client.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    assert list(process._process.clients) == [loop]
    asyncio.run(main())
    assert process._process.clients == {}
    assert process._process.endings == {}


def test_the_background_client_is_one_and_ends_with_the_instance() -> None:
    client = background_client()
    assert background_client() is client
    (thread,) = threads()
    forget_instance()
    thread.join(5)
    assert not thread.is_alive()
    assert client.loop.is_closed()
    with pytest.raises(InstanceError, match=r"remora\.run"):
        background_client()


def test_what_waits_on_the_background_loop_is_told_before_it_closes() -> None:
    client = background_client()
    told: list[str] = []

    async def wait_and_tell() -> None:
        call = asyncio.get_running_loop().create_future()
        # As a router does with the calls that are under way.
        client._others_closed = call  # type: ignore[attr-defined]
        try:
            await call
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            told.append("failed")

    close = client.close

    async def close_and_fail() -> None:
        await close()
        client._others_closed.set_exception(ConnectionError("gone"))  # type: ignore[attr-defined]

    client.close = close_and_fail  # type: ignore[method-assign]
    waiting = asyncio.run_coroutine_threadsafe(wait_and_tell(), client.loop)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), client.loop).result(5)
    forget_instance()
    with pytest.raises(ConnectionError):
        waiting.result(5)
    assert told == ["failed"]


def test_a_thread_that_waits_for_an_answer_is_told_that_the_instance_was_left() -> None:
    response: DeploymentResponse[int] = DeploymentHandle("Nowhere", "none").remote()
    client = background_client()
    waits = asyncio.run_coroutine_threadsafe(_until_a_call_waits(client), client.loop)
    waits.result(5)
    forget_instance()
    with pytest.raises(DeploymentUnavailableError, match="shut down"):
        response.result(timeout_s=5)


async def _until_a_call_waits(client: RoutingClient) -> None:
    router = client.router(DeploymentID("Nowhere", "none"))
    async with asyncio.timeout(5):
        while not router.num_waiting:
            await asyncio.sleep(0)


def test_a_background_loop_that_cannot_be_made_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> Any:
        raise OSError("Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("uvloop.new_event_loop", refuse)
        with pytest.raises(InstanceError, match="Too many open files"):
            background_client()
    # The next caller may have more luck.
    assert background_client().name == "tests"


def test_a_blocked_loop_is_waited_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START_LIMIT_S", 0.05)
    errors: list[Exception] = []

    def call() -> None:
        try:
            background_client()
        except InstanceError as error:
            errors.append(error)

    async def main() -> None:
        process.use_own_loop(asyncio.get_running_loop())
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(5)  # blocks the loop, as a user's code may

    asyncio.run(main())
    assert "blocked for 0.05 s" in str(errors[0])


def test_a_forked_process_makes_a_background_client_of_its_own() -> None:
    parents = background_client()
    with warnings.catch_warnings():
        # Python warns of forks in programs with threads, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(10)
            mine = background_client()
            turned = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "turned"), mine.loop)
            if mine is not parents and turned.result(5) == "turned":
                status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 10
    assert os.waitpid(child, 0)[1] == 0
    assert time.monotonic() < deadline
    turned = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "turned"), parents.loop)
    assert turned.result(5) == "turned"
