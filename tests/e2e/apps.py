"""What the end-to-end tests serve. Imported by replicas, so it imports nothing of the tests."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import StreamingResponse

import remora as serve


class EchoCode:
    """Answers with who it is."""

    def __init__(self, version: str = "v1", delay_s: float = 0.0) -> None:
        if version == "broken":
            raise ValueError("no weights at /models/v2")
        if version == "hangs":
            time.sleep(1000)
        self.version = version
        self.delay_s = delay_s
        self.config: Any = None
        self.num_seen = 0

    def reconfigure(self, config: Any) -> None:
        self.config = config

    async def __call__(self, request: Request) -> dict[str, Any]:
        self.num_seen += 1
        delay_s = float(request.query_params.get("delay", self.delay_s))
        if delay_s:
            await asyncio.sleep(delay_s)
        return {"version": self.version, "pid": os.getpid(), "config": self.config}

    async def seen(self) -> int:
        return self.num_seen


class StuckCode:
    """Blocks its loop for ever when it is asked to."""

    async def __call__(self, request: Request) -> str:
        if "block" in request.query_params:
            hold_everything()
        return "free"


def hold_everything() -> None:
    time.sleep(1000)


class TrickleCode:
    """Sends a number a tenth of a second, ten times."""

    async def __call__(self, request: Request) -> StreamingResponse:
        async def numbers() -> AsyncIterator[str]:
            for number in range(10):
                yield f"{number} "
                await asyncio.sleep(0.1)

        return StreamingResponse(numbers())


class SpawnerCode:
    """Leaves processes behind."""

    def __init__(self) -> None:
        self.children = [
            subprocess.Popen(["sleep", "1000"]),
            subprocess.Popen(["sleep", "1000"], start_new_session=True),
        ]

    async def __call__(self, request: Request) -> list[int]:
        return [child.pid for child in self.children]


# ------------------------------------------------------------------------------ three levels


def note(path: str, level: str, key: str, event: str) -> None:
    """Write down when something happened; one short write to one file is not torn."""
    with Path(path).open("a") as file:
        file.write(f"{level} {key} {event} {time.monotonic()}\n")


async def noted(path: str, level: str, key: str, work: Any) -> Any:
    """Await `work` and write down when it began and how it ended."""
    note(path, level, key, "began")
    try:
        result = await work
    except BaseException as error:
        note(path, level, key, type(error).__name__)
        raise
    note(path, level, key, "returned")
    return result


class GrandchildCode:
    """Works for a long time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.begun = self.cancelled = 0
        self.arrivals: dict[int, asyncio.Event] = {}

    async def __call__(self, key: str) -> str:
        await noted(self.path, "grandchild", key, asyncio.sleep(30))
        return "done"

    async def quiet(self, number: int = -1) -> None:
        self.begun += 1
        if number >= 0:
            self.arrivals.setdefault(number, asyncio.Event()).set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def arrived(self, number: int) -> None:
        """Return when `quiet(number)` is here."""
        await self.arrivals.setdefault(number, asyncio.Event()).wait()
        del self.arrivals[number]

    async def counts(self) -> tuple[int, int]:
        return self.begun, self.cancelled


class ChildCode:
    """Asks the level below."""

    def __init__(self, path: str, below: Any) -> None:
        self.path = path
        self.below = below

    async def __call__(self, key: str) -> Any:
        async def work() -> Any:
            return await self.below.remote(key)

        return await noted(self.path, "child", key, work())

    async def quiet(self, number: int = -1) -> None:
        await self.below.quiet.remote(number)


class IngressCode:
    """Asks the level below, for HTTP clients and for handles."""

    def __init__(self, path: str, below: Any) -> None:
        self.path = path
        self.below = below

    async def __call__(self, request: Request) -> Any:
        if "quiet" in request.query_params:
            return await self.quiet()
        return await self.call(request.query_params["key"])

    async def call(self, key: str) -> Any:
        async def work() -> Any:
            return await self.below.remote(key)

        return await noted(self.path, "ingress", key, work())

    async def quiet(self, number: int = -1) -> None:
        await self.below.quiet.remote(number)

    async def numbers(self, key: str) -> AsyncIterator[int]:
        note(self.path, "ingress", key, "began")
        try:
            for number in range(1_000_000):
                yield number
                await asyncio.sleep(0.01)
        except BaseException as error:
            note(self.path, "ingress", key, type(error).__name__)
            raise


# Plain calls rather than decorators: type checkers see what they return.
Stuck = serve.deployment(name="Stuck")(StuckCode)
Echo = serve.deployment(name="Echo", max_ongoing_requests=100)(EchoCode)
Trickle = serve.deployment(name="Trickle")(TrickleCode)
Spawner = serve.deployment(name="Spawner")(SpawnerCode)
Grandchild = serve.deployment(name="Grandchild", max_ongoing_requests=1000)(GrandchildCode)
Child = serve.deployment(name="Child", max_ongoing_requests=1000)(ChildCode)
Ingress = serve.deployment(name="Ingress", max_ongoing_requests=1000)(IngressCode)


def three_levels(path: str) -> Any:
    """The application of `Ingress`, `Child` and `Grandchild`."""
    return Ingress.bind(path, Child.bind(path, Grandchild.bind(path)))


# ------------------------------------------------------------------------------- bad manners


class _Unheard(BaseException):
    """Something that no `except Exception` catches."""


def _exhaust_descriptors() -> str:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = []
    try:
        while True:
            held.append(open("/dev/null"))  # noqa: PTH123, SIM115
    except OSError:
        _kept.append(held)
        return f"{len(held)} descriptors"


def _fork() -> int:
    pid = os.fork()
    if pid == 0:
        # Holds copies of every socket of this replica, for ever.
        while True:
            time.sleep(1000)
    return pid


def _leave_threads() -> int:
    never = threading.Event()
    for _ in range(20):
        threading.Thread(target=never.wait).start()
    return threading.active_count()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _raise_unheard() -> None:
    raise _Unheard("on purpose")


_kept: list[Any] = []
_MANNERS: dict[str, Callable[[], Any]] = {
    "well": lambda: "well",
    "os._exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit("on purpose"),
    "abort": os.abort,
    "BaseException": _raise_unheard,
    "KeyboardInterrupt": _interrupt,
    "unjson": object,
    "descriptors": _exhaust_descriptors,
    "print": lambda: print("x" * 10_000_000),
    "fork": _fork,
    "threads": _leave_threads,
}


class BadMannersCode:
    """Does what a handler should not do."""

    async def __call__(self, request: Request) -> Any:
        return _MANNERS[request.query_params["how"]]()


class BadMannersInThreadCode:
    """Does the same in the pool of threads for plain functions."""

    def __call__(self, request: Request) -> Any:
        return _MANNERS[request.query_params["how"]]()


class UploadCode:
    """Counts the bytes of a body as they come."""

    async def __call__(self, request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])


class EndlessCode:
    """Streams for as long as anybody reads, and counts what it could get rid of."""

    def __init__(self) -> None:
        self.num_parts = 0

    async def __call__(self, request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                self.num_parts += 1
                yield bytes(100_000)

        return StreamingResponse(parts())

    async def count(self) -> int:
        return self.num_parts


class HeldCode:
    """Answers nobody before a file is there."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    async def __call__(self, request: Request) -> str:
        return await self.held()

    async def held(self) -> str:
        while not self.path.exists():
            await asyncio.sleep(0.01)
        return "held"


Held = serve.deployment(name="Held")(HeldCode)
Endless = serve.deployment(name="Endless", max_ongoing_requests=100)(EndlessCode)
BadManners = serve.deployment(name="BadManners", num_replicas=2)(BadMannersCode)
BadMannersInThread = serve.deployment(name="BadManners", num_replicas=2)(BadMannersInThreadCode)
Upload = serve.deployment(name="Upload")(UploadCode)


class KeeperCode:
    """Keeps the large values that it is given, and makes some."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    async def keep(self, value: Any) -> None:
        self.kept.append(value)

    async def hold(self, value: Any) -> None:
        self.kept.append(value)
        await asyncio.sleep(1000)

    async def values(self) -> list[int]:
        """The values of the arrays, each of which has one only; the held ones left out."""
        return [int(one[0]) for one in self.kept[:4] if (one == one[0]).all()]

    async def drop(self) -> None:
        self.kept.clear()

    async def make(self, size: int, value: int) -> Any:
        return np.full(size, value, np.uint8)


Keeper = serve.deployment(name="Keeper", max_ongoing_requests=100)(KeeperCode)
