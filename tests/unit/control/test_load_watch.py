"""The reports of one replica reach the controller, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator

import msgspec
import pytest

from remora.control.load_watch import LoadWatch
from remora.errors import ConnectionLostError, RemoteError
from remora.wire.scaling import LoadWanted, ReplicaLoad

pytestmark = pytest.mark.virtual_time


class Link:
    """A replica that reports 1, 2, 3 and goes."""

    is_open = True
    numbers = itertools.count(1)

    async def call(self, *_args: object, **_kwargs: object) -> None:
        raise AssertionError("nothing else is asked")

    async def stream(
        self, method: str, body: msgspec.Struct | None, item: type[ReplicaLoad]
    ) -> AsyncGenerator[ReplicaLoad, None]:
        assert method == "load"
        for _ in range(3):
            yield item(float(next(self.numbers)))
        raise ConnectionLostError("the replica went")

    def close(self) -> None:
        """Let go of it."""


class Another(Link):
    numbers = itertools.count(1)


async def test_a_replica_that_cannot_tell_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    heard = asyncio.Event()
    refusals = iter([RemoteError("not yet"), RemoteError("nor now")])

    async def connect(_address: str) -> Another:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return Another()

    watch = LoadWatch(connect, "unix:r", LoadWanted(0.25, 10.0), lambda _load: heard.set())  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        await heard.wait()
    watch.close()
    assert caplog.text.count("reports no load") == 1


async def test_a_bug_in_what_takes_a_report_ends_no_watch(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[float | None] = []
    enough = asyncio.Event()

    def on_load(load: ReplicaLoad) -> None:
        heard.append(load.ongoing)
        if load.ongoing == 2:
            raise AttributeError("a bug")
        if load.ongoing == 5:
            enough.set()

    async def connect(_address: str) -> Link:
        return Link()

    watch = LoadWatch(connect, "unix:r", LoadWanted(0.25, 10.0), on_load)  # type: ignore[arg-type]
    await enough.wait()
    watch.close()
    assert heard == [1, 2, 3, 4, 5]
    assert caplog.text.count("was lost to a bug") == 1
