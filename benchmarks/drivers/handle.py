"""Calls a deployment through its handle: for Remora and, with the same code, for Ray Serve."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import time
from collections.abc import Mapping
from typing import Any

import uvloop

from benchmarks.drivers import cores
from benchmarks.drivers.orders import Operation, obey
from benchmarks.stats import percentile

#: Argument and result of the small calls, and the message of the ping-pong that is their limit.
PAYLOAD = b"sixteen bytes ok"
#: Items of one stream: long enough that opening it costs under 1 % at the goal's rate.
_STREAM_ITEMS = 20_000


class HandleLoads:
    """The loads that the harness can order.

    Args:
        handle: of the application's only deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def operations(self) -> Mapping[str, Operation]:
        """Return the loads by name."""
        return {
            "call_p50_ms": self.call_p50_ms,
            "calls_per_s": self.calls_per_s,
            "items_per_s": self.items_per_s,
            "array_mb_per_s": self.array_mb_per_s,
        }

    async def call_p50_ms(self, duration_s: float) -> float:
        """Return the median time of a call, one after the other."""
        echo = self._handle.echo
        samples: list[float] = []
        end = time.perf_counter() + duration_s
        while time.perf_counter() < end:
            begin = time.perf_counter_ns()
            answer = await echo.remote(PAYLOAD)
            samples.append((time.perf_counter_ns() - begin) / 1e6)
            _require(answer, PAYLOAD)
        return percentile(samples, 0.5)

    async def calls_per_s(self, duration_s: float, in_flight: int) -> float:
        """Return how many calls a second end, with `in_flight` callers that never pause."""
        begin = time.perf_counter()
        end = begin + duration_s

        async def caller() -> int:
            echo = self._handle.echo
            calls = 0
            while time.perf_counter() < end:
                _require(await echo.remote(PAYLOAD), PAYLOAD)
                calls += 1
            return calls

        counts = await asyncio.gather(*(caller() for _ in range(in_flight)))
        return sum(counts) / (time.perf_counter() - begin)

    async def items_per_s(self, duration_s: float) -> float:
        """Return the rate of items out of streams read one after the other.

        A stream that is too slow to end is left at `duration_s`: what came counts.
        """
        count = self._handle.options(stream=True).count
        items = 0
        begin = time.perf_counter()
        end = begin + duration_s
        while time.perf_counter() < end:
            expected = 0
            async for item in count.remote(_STREAM_ITEMS):
                _require(item, expected)
                expected += 1
                if expected % 1000 == 0 and time.perf_counter() > end + 5:
                    return (items + expected) / (time.perf_counter() - begin)
            _require(expected, _STREAM_ITEMS)
            items += expected
        return items / (time.perf_counter() - begin)

    async def array_mb_per_s(self, duration_s: float, size_bytes: int) -> float:
        """Return the rate of arrays passed as an argument, one call at a time."""
        import numpy  # Here, so that the other rows need no numpy.

        array: Any = numpy.full(size_bytes, 7, dtype=numpy.uint8)
        size = self._handle.size
        # Not counted: the first call may create the buffers that later ones reuse.
        _require(await size.remote(array), size_bytes)
        calls = 0
        begin = time.perf_counter()
        end = begin + duration_s
        while time.perf_counter() < end or calls == 0:
            _require(await size.remote(array), size_bytes)
            calls += 1
        return calls * size_bytes / 1e6 / (time.perf_counter() - begin)


def _require(answer: object, expected: object) -> None:
    """A fast wrong answer is no result."""
    if answer != expected:
        raise AssertionError(f"the deployment answered {answer!r}, expected {expected!r}")


def main() -> None:
    """Start an instance, deploy the application, obey orders, shut down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--serve", required=True, help="module with the Serve API")
    parser.add_argument("--app", required=True, help="module:attribute of the application")
    parser.add_argument("--port", type=int, required=True, help="for the instance's HTTP proxy")
    flags = parser.parse_args()
    serve = importlib.import_module(flags.serve)
    module, _, attribute = flags.app.partition(":")
    cores.start_callees()
    serve.start(http_options={"host": "127.0.0.1", "port": flags.port})
    serve.run(getattr(importlib.import_module(module), attribute))
    cores.take_own()
    try:
        loads = HandleLoads(serve.get_app_handle("default"))
        uvloop.run(obey(flags.orders, loads.operations()))
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
