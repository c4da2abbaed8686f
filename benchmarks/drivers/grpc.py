"""Loads a gRPC service: on gRPC's own server in a process of its own, or on Remora.

The client is the same: gRPC's own, on one channel, with the service's messages.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvloop
from grpc import aio

from benchmarks.apps.grpc_echo import PATH, Echo, Words, add_servicer
from benchmarks.drivers.handle import PAYLOAD
from benchmarks.drivers.orders import Operation, obey
from benchmarks.stats import percentile


class GrpcLoads:
    """The loads that the harness can order.

    Args:
        address: `host:port` of the service.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def calls_per_s(self, duration_s: float, in_flight: int) -> float:
        """Return how many calls a second end, with `in_flight` callers that never pause."""
        async with aio.insecure_channel(self._address) as channel:
            say = _method(channel)
            await _ask(say)
            begin = time.perf_counter()
            end = begin + duration_s

            async def caller() -> int:
                calls = 0
                while time.perf_counter() < end:
                    await _ask(say)
                    calls += 1
                return calls

            counts = await asyncio.gather(*(caller() for _ in range(in_flight)))
            return sum(counts) / (time.perf_counter() - begin)

    async def call_p50_ms(self, duration_s: float) -> float:
        """Return the median time of a call, one after the other."""
        async with aio.insecure_channel(self._address) as channel:
            say = _method(channel)
            await _ask(say)
            samples: list[float] = []
            end = time.perf_counter() + duration_s
            while time.perf_counter() < end:
                begin = time.perf_counter_ns()
                await _ask(say)
                samples.append((time.perf_counter_ns() - begin) / 1e6)
            return percentile(samples, 0.5)


def _method(channel: Any) -> Any:
    return channel.unary_unary(PATH, Words.SerializeToString, Words.FromString)


async def _ask(say: Any) -> None:
    answer = await say(Words(data=PAYLOAD), timeout=20, wait_for_ready=True)
    if answer.data != PAYLOAD:
        raise AssertionError(f"the service answered {answer.data!r}")


async def _serve_bare(port: int) -> None:
    """The limit: gRPC's server with the handler in it."""
    server = aio.server()
    add_servicer(Echo(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@contextmanager
def _bare(port: int) -> Iterator[None]:
    argv = [sys.executable, "-m", "benchmarks.drivers.grpc", "--bare", "--port", str(port)]
    server = subprocess.Popen(argv)
    try:
        yield
    finally:
        server.terminate()
        server.wait(5)


@contextmanager
def _on_remora(port: int) -> Iterator[None]:
    serve = importlib.import_module("remora")
    options = {"port": port, "grpc_servicer_functions": [add_servicer]}
    serve.start(http_options={"port": 0}, grpc_options=options)
    try:
        serve.run(importlib.import_module("benchmarks.apps.remora_grpc").app)
        yield
    finally:
        serve.shutdown()


def main() -> None:
    """Start what is measured, obey orders, end it; or with `--bare` be the limit's server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--serve", choices=("bare", "remora"))
    parser.add_argument("--bare", action="store_true")
    flags = parser.parse_args()
    if flags.bare:
        uvloop.run(_serve_bare(flags.port))
        return

    with (_bare if flags.serve == "bare" else _on_remora)(flags.port):
        loads = GrpcLoads(f"127.0.0.1:{flags.port}")
        operations: dict[str, Operation] = {
            "calls_per_s": loads.calls_per_s,
            "call_p50_ms": loads.call_p50_ms,
        }
        uvloop.run(obey(flags.orders, operations))


if __name__ == "__main__":
    main()
