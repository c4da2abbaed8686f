"""What the tests on Ray serve. Imported by replicas, so it imports nothing of the tests."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import ray

import remora as serve


@serve.deployment(idempotent=True, max_ongoing_requests=50)
class Echo:
    """Answers with the process and the node that it runs on."""

    async def __call__(self, request: Any = None) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    async def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def double(self, value: Any) -> Any:
        return value * 2


def dies_at_once(_context: Any) -> None:
    """Entry point of a process that never stays."""
    os._exit(3)


@ray.remote(num_cpus=0)
def squared(number: int) -> int:
    return number * number


@ray.remote(num_cpus=0)
def asks(name: str, number: int) -> Any:
    """A plain task of Ray that calls a deployment."""
    handle: Any = serve.get_app_handle(name)
    return handle.double.remote(number).result(timeout_s=20)


@serve.deployment
class UsesRay:
    """Uses tasks and objects of Ray."""

    def __init__(self, echo: Any) -> None:
        self.echo = echo

    async def awaits(self, number: int) -> int:
        return int(await squared.remote(number))

    def gets(self, number: int) -> int:
        return int(ray.get(squared.remote(number)))

    async def passes_on(self, number: int) -> Any:
        return await self.echo.double.remote(squared.remote(number))

    async def refers(self, number: int) -> Any:
        ref = await self.echo.double.remote(number)._to_object_ref()
        return await squared.remote(ref)


@serve.deployment(max_ongoing_requests=50, ray_actor_options={"num_cpus": 0.1})
class Counted:
    """Writes down which requests it has begun; GETs may run twice, POSTs may not."""

    def __init__(self, folder: str) -> None:
        self._ran = (Path(folder) / f"{os.getpid()}.ran").open("a", buffering=1)

    async def __call__(self, request: Any) -> dict[str, Any]:
        self._ran.write(f"{request.query_params['id']}\n")
        await asyncio.sleep(0.01)
        return {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    async def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def echo(self, value: Any) -> Any:
        return value


app = Echo.bind()
