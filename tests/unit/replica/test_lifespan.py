"""The lifespan of an ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette

from remora.replica.lifespan import Lifespan, LifespanError


def app_that(log: list[str], fail_at: str = "") -> Starlette:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        log.append("up")
        if fail_at == "startup":
            raise ValueError("no disk")
        # Leaving a timeout in another task than the one that entered it is an error.
        async with asyncio.timeout(None):
            yield {"pool": 7}
        log.append("down")
        if fail_at == "shutdown":
            raise ValueError("still busy")

    return Starlette(lifespan=lifespan)


async def test_startup_and_shutdown_run_once_and_leave_the_state() -> None:
    log: list[str] = []
    lifespan = Lifespan(app_that(log))
    await lifespan.startup()
    assert log == ["up"]
    assert lifespan.state == {"pool": 7}
    await lifespan.shutdown()
    await lifespan.shutdown()
    assert log == ["up", "down"]


async def test_failed_startup_has_the_apps_exception_as_its_cause() -> None:
    lifespan = Lifespan(app_that([], "startup"))
    with pytest.raises(LifespanError, match="startup failed: ValueError\\('no disk'\\)") as caught:
        await lifespan.startup()
    assert isinstance(caught.value.__cause__, ValueError)
    await lifespan.shutdown()


async def test_failed_shutdown_is_reported() -> None:
    lifespan = Lifespan(app_that([], "shutdown"))
    await lifespan.startup()
    with pytest.raises(LifespanError, match="still busy"):
        await lifespan.shutdown()


async def test_startup_failure_without_exception_tells_the_apps_message() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "out of licences"})

    with pytest.raises(LifespanError, match="out of licences"):
        await Lifespan(app).startup()


@pytest.mark.parametrize("raises", (True, False))
async def test_app_that_does_not_know_the_protocol_is_served_without(raises: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if raises:
            assert scope["type"] == "http"

    lifespan = Lifespan(app)
    await lifespan.startup()
    await lifespan.shutdown()
    assert lifespan.state == {}


async def test_app_that_breaks_during_shutdown_is_reported() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise OSError("cable")

    lifespan = Lifespan(app)
    await lifespan.startup()
    with pytest.raises(LifespanError, match="cable"):
        await lifespan.shutdown()
