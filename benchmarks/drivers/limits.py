"""The limits of the handle rows: a ping-pong over a Unix socket, a copy into shared memory."""

from __future__ import annotations

import argparse
import asyncio
import functools
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.drivers import cores
from benchmarks.drivers.handle import PAYLOAD
from benchmarks.drivers.orders import Operation, obey
from benchmarks.stats import percentile


class _Pong(asyncio.Protocol):
    """Sends back whatever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self._transport.write(data)


class _Ping(asyncio.Protocol):
    """Awaits one answer for each message, as the caller of a handle does."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        """Wake the caller; messages this small arrive whole."""
        if self._answer is not None:
            self._answer.set_result(None)

    async def call(self, payload: bytes) -> None:
        """Send `payload` and wait for its echo."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(payload)
        await self._answer


async def serve_pong(path: str) -> None:
    """Echo on the Unix socket `path` until this process is ended."""
    server = await asyncio.get_running_loop().create_unix_server(_Pong, path)
    await server.serve_forever()


async def array_mb_per_s(duration_s: float, size_bytes: int) -> float:
    """Copy an array again and again into one shared memory segment."""
    source = b"\x01" * size_bytes
    segment = SharedMemory(create=True, size=size_bytes)
    try:
        target = cast(memoryview, segment.buf)[:size_bytes]
        target[:] = source  # The first filling makes the pages; a reused segment has them.
        copies = 0
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + duration_s or copies == 0:
            target[:] = source
            copies += 1
        target.release()
    finally:
        segment.close()
        segment.unlink()
    return copies * size_bytes / 1e6 / (now - begin)


async def call_p50_ms(path: str, duration_s: float) -> float:
    """Send and await one message after the other on the Unix socket `path`."""
    transport, ping = await asyncio.get_running_loop().create_unix_connection(_Ping, path)
    samples: list[float] = []
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        await ping.call(PAYLOAD)
        samples.append((time.perf_counter_ns() - begin) / 1e6)
    transport.close()
    return percentile(samples, 0.5)


def _start_pong(path: Path) -> subprocess.Popen[bytes]:
    """Start the other process and wait until it listens."""
    argv = [sys.executable, "-m", "benchmarks.drivers.limits", "--pong", str(path)]
    pong = subprocess.Popen(argv)
    while not path.exists():
        if pong.poll() is not None:
            raise SystemExit(f"the ping-pong server exited with {pong.returncode}")
        time.sleep(0.01)
    return pong


def main() -> None:
    """Run the limits driver, or with `--pong` its other process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--pong")
    flags = parser.parse_args()
    if flags.pong:
        uvloop.run(serve_pong(flags.pong))
    else:
        path = flags.folder / "pong.sock"
        cores.start_callees()
        pong = _start_pong(path)
        cores.take_own()
        try:
            operations: dict[str, Operation] = {
                "call_p50_ms": functools.partial(call_p50_ms, str(path)),
                "array_mb_per_s": array_mb_per_s,
            }
            uvloop.run(obey(flags.orders, operations))
        finally:
            pong.terminate()
            pong.wait(5)


if __name__ == "__main__":
    main()
