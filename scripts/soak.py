"""Load an instance with everything at once, for long, and see whether anything grows.

    python scripts/soak.py                       100 seconds
    python scripts/soak.py --requests 1000000    a million requests, however long they take

The first fifth of the run is warm-up. After it, in every process of the instance and in this
one, the straight line through all samples of the resident memory may rise by `GROWTH_BYTES` from
its beginning to its end, open descriptors by `GROWTH_FDS` and threads by `GROWTH_THREADS`; the
number of temporary files may rise by `GROWTH_FILES`. No process may come or go, and every request
must end as it should. Exit status 1 says that something did not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import soak_app

import remora as serve
from remora.api import begin_start
from remora.errors import RequestCancelledError, RequestTimeoutError

#: Allocators keep what was freed in pieces, so a process that leaks nothing still moves a little:
#: by about a megabyte in runs of ten minutes.
GROWTH_BYTES = 2_500_000
#: Connections of clients that left close a moment later than the next ones open.
GROWTH_FDS = 12
GROWTH_THREADS = 1
GROWTH_FILES = 2
#: Share of the run that is not judged.
WARM_UP = 0.2
SAMPLE_S = 0.25


@dataclass(frozen=True)
class Sample:
    """What one process held at one moment."""

    at: float
    rss_bytes: int
    num_fds: int
    num_threads: int


@dataclass
class Record:
    """Everything that was seen.

    Attributes:
        processes: samples by title and pid.
        files: number of temporary files at each sample.
        done: requests that ended as they should, by kind.
        wrong: those that did not, with what happened.
    """

    processes: dict[str, list[Sample]] = field(default_factory=dict)
    files: list[int] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def num_requests(self) -> int:
        """How many have ended."""
        return self.done.total() + self.wrong.total()


# ------------------------------------------------------------------------------------ judgement


def rise(samples: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    """By how much the straight line through `samples` rises from the first to the last. Pure."""
    times = [sample.at for sample in samples]
    slope = linear_regression(times, [of(sample) for sample in samples]).slope
    return slope * (times[-1] - times[0])


def step(values: Sequence[float]) -> float:
    """By how much the last quarter lies above the first, outliers apart. Pure."""
    quarter = max(1, len(values) // 4)
    return median(values[-quarter:]) - median(values[:quarter])


def judge(record: Record) -> list[str]:
    """What is wrong with a run; nothing: it passed. Pure."""
    longest = max(len(samples) for samples in record.processes.values())
    first = int(longest * WARM_UP)
    found = [f"{number} requests: {text}" for text, number in record.wrong.most_common(10)]
    for name, samples in record.processes.items():
        if len(samples) < longest:
            found.append(f"{name} came or went: {len(samples)} of {longest} samples")
            continue
        judged = samples[first:]
        limits = (
            ("bytes", rise(judged, lambda s: s.rss_bytes), GROWTH_BYTES),
            ("descriptors", step([s.num_fds for s in judged]), GROWTH_FDS),
            ("threads", step([s.num_threads for s in judged]), GROWTH_THREADS),
        )
        found += [
            f"{name} grew by {grown:,.0f} {what} (allowed: {limit:,})"
            for what, grown, limit in limits
            if grown > limit
        ]
    if (grown := step(record.files[first:])) > GROWTH_FILES:
        found.append(f"there are {grown:g} more temporary files (allowed: {GROWTH_FILES})")
    return found


def table(record: Record) -> str:
    """What each process held after warm-up and at the end. Pure."""
    lines = [f"{'process':<44} {'MB':>7} {'rise':>7} {'fds':>5} {'threads':>7}"]
    for name, samples in record.processes.items():
        judged = samples[int(len(samples) * WARM_UP) :]
        if len(judged) > 1:
            grown = rise(judged, lambda s: s.rss_bytes) / 1e6
            last = judged[-1]
            lines.append(
                f"{name:<44} {last.rss_bytes / 1e6:>7.1f} {grown:>+7.2f} {last.num_fds:>5} "
                f"{last.num_threads:>7}"
            )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------- sampling


def take(record: Record, places: Sequence[Path]) -> None:
    """Look at this process, the supervisor and all that descends from it."""
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess), process.oneshot():
            title = "this script" if process.pid == me.pid else " ".join(process.cmdline()).strip()
            name = f"{title} ({process.pid})"
            sample = Sample(
                time.monotonic(),
                process.memory_info().rss,
                process.num_fds(),
                process.num_threads(),
            )
            record.processes.setdefault(name, []).append(sample)
    record.files.append(sum(len(files) for place in places for _, _, files in os.walk(place)))


async def keep_sampling(record: Record, places: Sequence[Path]) -> None:
    """Sample until cancelled."""
    while True:
        take(record, places)
        await asyncio.sleep(SAMPLE_S)


# ----------------------------------------------------------------------------------------- load


class Wrong(Exception):
    """A request did not end as it should."""


class Mix:
    """The kinds of requests. Each method is one request and raises when it ends otherwise."""

    def __init__(self, session: aiohttp.ClientSession, url: str, plain: Any) -> None:
        self._session = session
        self._url = url
        self._plain = plain
        self._rng = random.Random(7)

    async def _expect(self, status: int, method: str, path: str, **request: Any) -> bytes:
        async with self._session.request(method, f"{self._url}{path}", **request) as response:
            body = await response.read()
            if response.status != status:
                raise Wrong(f"{method} {path}: {response.status} {body[:80]!r}")
            return body

    async def get(self) -> None:
        """A plain GET."""
        await self._expect(200, "GET", "/plain/hello")

    async def post(self) -> None:
        """A POST to FastAPI, which calls another deployment."""
        order = {"name": "a" * 200, "amounts": [1.5, 2.5, 3.0]}
        body = await self._expect(200, "POST", "/orders/orders", json=order)
        if b'"total":7.0' not in body:
            raise Wrong(f"POST: {body!r}")

    async def invalid(self) -> None:
        """A POST that pydantic refuses."""
        await self._expect(422, "POST", "/orders/orders", json={"name": 5})

    async def stream(self) -> None:
        """A streamed response."""
        if len((await self._expect(200, "GET", "/plain/stream")).split()) != 20:
            raise Wrong("a stream is not whole")

    async def error(self) -> None:
        """A handler that raises."""
        await self._expect(500, "GET", "/plain/error")

    async def late(self) -> None:
        """A handler that is too slow for its client's deadline."""
        headers = {"x-request-timeout-seconds": "0.02"}
        await self._expect(408, "GET", "/plain/slow", headers=headers)

    async def leave(self) -> None:
        """A client that leaves."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._rng.random() * 0.02):
                await self._expect(200, "GET", "/plain/slow")

    async def nowhere(self) -> None:
        """A path that belongs to nobody."""
        await self._expect(404, "GET", "/nowhere")

    async def call(self) -> None:
        """A call through a handle."""
        if await self._plain.add.remote(2, 3) != 5:
            raise Wrong("2 + 3")

    async def large(self) -> None:
        """A call with a large argument."""
        await self._plain.add.remote(b"x" * 300_000, b"")

    async def count(self) -> None:
        """A stream through a handle, and one that is left in the middle."""
        counted = self._plain.options(stream=True).count
        if [number async for number in counted.remote(50)] != list(range(50)):
            raise Wrong("a stream is not whole")
        left = counted.remote(1_000_000)
        async for number in left:
            if number == 10:
                break
        left.cancel()

    async def fail(self) -> None:
        """A method that raises."""
        with suppress(ValueError):
            await self._plain.fail.remote()
            raise Wrong("no ValueError")

    async def cancel(self) -> None:
        """A call that is cancelled."""
        response = self._plain.wait.remote()
        await asyncio.sleep(self._rng.random() * 0.01)
        response.cancel()
        with suppress(RequestCancelledError):
            await response

    async def expire(self) -> None:
        """A call whose time is up."""
        with suppress(RequestTimeoutError):
            await self._plain.options(timeout_s=0.02).wait.remote()
            raise Wrong("no RequestTimeoutError")

    async def block(self) -> None:
        """A plain function in a thread."""
        await self._plain.block.remote(0.01)

    def workers(self) -> list[tuple[Callable[[], Awaitable[None]], int]]:
        """Every kind, and how many of it are under way at any time."""
        return [
            (self.get, 8),
            (self.post, 3),
            (self.invalid, 1),
            (self.stream, 2),
            (self.error, 1),
            (self.late, 2),
            (self.leave, 2),
            (self.nowhere, 1),
            (self.call, 8),
            (self.large, 1),
            (self.count, 1),
            (self.fail, 1),
            (self.cancel, 4),
            (self.expire, 2),
            (self.block, 2),
        ]


async def work(kind: Callable[[], Awaitable[None]], record: Record, go_on: asyncio.Event) -> None:
    """Send one request after the other until told to stop."""
    name = kind.__name__
    while not go_on.is_set():
        try:
            await kind()
        # Border: whatever a request ends with is the result of this script.
        except Exception as error:  # noqa: BLE001
            record.wrong[f"{name}: {type(error).__name__}: {error}"] += 1
            await asyncio.sleep(0.01)
        else:
            record.done[name] += 1


async def soak(record: Record, url: str, plain: Any, args: argparse.Namespace) -> None:
    """Load for as long as asked."""
    places = (Path(os.environ["REMORA_HOME"]), Path(tempfile.gettempdir()))
    stop = asyncio.Event()
    began = time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        mix = Mix(session, url, plain)
        workers = [
            asyncio.create_task(work(kind, record, stop))
            for kind, number in mix.workers()
            for _ in range(number)
        ]
        sampler = asyncio.create_task(keep_sampling(record, places))
        for second in itertools.count(1):
            await asyncio.sleep(max(0.0, began + second - time.monotonic()))
            if args.requests is not None and record.num_requests >= args.requests:
                break
            if args.seconds is not None and second >= args.seconds:
                break
            if second % 60 == 0:
                print(f"{second} s, {record.num_requests:,} requests", flush=True)
        sampler.cancel()
        await asyncio.wait([sampler])
        stop.set()
        await asyncio.gather(*workers)
    took_s = time.monotonic() - began
    print(f"{record.num_requests:,} requests in {took_s:.0f} s")
    print(", ".join(f"{kind} {number:,}" for kind, number in sorted(record.done.items())))


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--requests", type=int, help="stop after this many")
    parser.add_argument("--seconds", type=float, help="stop after this long (default: 100)")
    args = parser.parse_args()
    if args.requests is None and args.seconds is None:
        args.seconds = 100.0
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    # What the instance leaves lying about is to be found here, and only what it leaves.
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ["REMORA_HOME"] = str(folder / "home")
    (folder / "tmp").mkdir()
    record = Record()
    try:
        url = begin_start(http_options={"port": 0}).wait_ready()
        plain = serve.run(soak_app.plain, name="plain", route_prefix="/plain")
        serve.run(soak_app.orders, name="orders", route_prefix="/orders")
        asyncio.run(soak(record, url, plain, args))
        serve.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(record))
    found = judge(record)
    for line in found:
        print(f"WRONG: {line}")
    print("failed" if found else "passed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
