"""What the log says of a request that failed in the user's code."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI
from tests.integration.http_client import ask
from tests.integration.rig import Rig, until

from remora.errors import InternalError


class Fast:
    def __init__(self) -> None:
        self.app = FastAPI()

        @self.app.get("/fail")
        async def fail() -> None:
            raise RuntimeError("broken")

        @self.app.get("/ours")
        async def ours() -> None:
            raise InternalError("ours")

        @self.app.get("/later")
        async def later(tasks: BackgroundTasks) -> str:
            async def clean_up() -> None:
                raise RuntimeError("broken")

            tasks.add_task(clean_up)
            return "done"

    def __remora_asgi_app__(self) -> Any:
        return self.app


class Plain:
    async def __call__(self, request: Any) -> str:
        raise InternalError("ours")


@pytest.mark.parametrize(
    ("code", "path", "status", "begins", "raised"),
    [
        (Fast, "/fail", 500, "App failed, GET /fail, request me-1\n", "RuntimeError: broken"),
        (Fast, "/ours", 500, "App failed, GET /ours, request me-1\n", "InternalError: ours"),
        (
            Fast,
            "/later",
            200,
            "App failed after its response, GET /later, request me-1\n",
            "RuntimeError: broken",
        ),
        (Plain, "/p", 500, "App failed, GET /p, request me-1\n", "InternalError: ours"),
    ],
)
async def test_a_failure_is_logged_once_with_the_users_frames(
    rig: Rig,
    caplog: pytest.LogCaptureFixture,
    code: Any,
    path: str,
    status: int,
    begins: str,
    raised: str,
) -> None:
    node = await rig.node(code)
    door = await rig.door(node)
    with caplog.at_level(logging.INFO, "remora.replica"):
        assert (await ask(door, path, x_request_id="me-1")).status == status
        await until(lambda: node.replica.ongoing == 0)
        await asyncio.sleep(0)
    # Where the machine stops the loop for a while, a warning says so.
    told = [each for each in caplog.records if each.name == "remora.replica"]
    (text,) = [each.getMessage() for each in told if each.levelno == logging.ERROR]
    assert text.startswith(begins)
    assert raised in text
    assert text.count('File "') == 1
    assert "test_failure_logs.py" in text
