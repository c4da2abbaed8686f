"""Loads a batched model, as it comes or with the best static setting that a sweep finds.

The sweep is part of the first order for a number of callers, which the harness does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import Any, NamedTuple

import numpy as np
import uvloop

import remora as serve
from benchmarks.apps.remora_mlp import FEATURES, LARGEST_BATCH, app
from benchmarks.drivers import cores
from benchmarks.drivers.orders import obey
from benchmarks.stats import percentile

_SIZES = (4, 10, LARGEST_BATCH)
_WAITS_S = (0.0, 0.001, 0.003, 0.01)
#: (max_batch_size, batch_wait_timeout_s): without a batch there is nothing to wait for.
SETTINGS = [(1, 0.0), *((size, wait_s) for size in _SIZES for wait_s in _WAITS_S)]
_SWEEP_SAMPLE_S = 0.25
#: Settings that are measured again, because the best of many noisy figures is mostly lucky.
_FINALISTS = 4


class Load(NamedTuple):
    """What callers saw who never pause."""

    rate: float
    p50_ms: float


class BatchLoads:
    """The loads that the harness can order.

    Args:
        handle: of `Mlp`.
        best: use the best static setting, not what comes without tuning.
    """

    def __init__(self, handle: Any, *, best: bool) -> None:
        self._handle = handle
        self._best: dict[int, tuple[int, float]] | None = {} if best else None
        self._row: Any = np.linspace(-1, 1, FEATURES, dtype=np.float32)

    async def p50_ms(self, duration_s: float, callers: int) -> float:
        """Return the median time of a call."""
        return (await self._measure(duration_s, callers)).p50_ms

    async def rate(self, duration_s: float, callers: int) -> float:
        """Return how many calls a second end."""
        return (await self._measure(duration_s, callers)).rate

    async def _measure(self, duration_s: float, callers: int) -> Load:
        if self._best is None:
            return await self._load(self._handle.default, duration_s, callers)
        if callers not in self._best:
            self._best[callers] = await self._sweep(callers)
        await self._handle.tune.remote(*self._best[callers])
        return await self._load(self._handle.static, duration_s, callers)

    async def _sweep(self, callers: int) -> tuple[int, float]:
        ranked = await self._rank(SETTINGS, callers, 1)
        ranked = await self._rank(ranked[:_FINALISTS], callers, 3)
        print(f"{callers} callers: {ranked}", flush=True)
        return ranked[0]

    async def _rank(
        self, settings: list[tuple[int, float]], callers: int, rounds: int
    ) -> list[tuple[int, float]]:
        """Sort settings, the best first. With callers who never pause, latency follows rate."""
        rates = dict.fromkeys(settings, 0.0)
        order = random.Random(callers)
        for _ in range(rounds):
            for setting in order.sample(settings, len(settings)):
                await self._handle.tune.remote(*setting)
                await self._load(self._handle.static, 0.05, callers)
                rates[setting] += (
                    await self._load(self._handle.static, _SWEEP_SAMPLE_S, callers)
                ).rate
        return sorted(settings, key=lambda setting: -rates[setting])

    async def _load(self, method: Any, duration_s: float, callers: int) -> Load:
        times_ms: list[float] = []
        start = time.perf_counter()
        end = start + duration_s

        async def caller() -> None:
            while (begin := time.perf_counter()) < end:
                await method.remote(self._row)
                times_ms.append((time.perf_counter() - begin) * 1000)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return Load(len(times_ms) / (time.perf_counter() - start), percentile(times_ms, 0.5))


def main() -> None:
    """Start an instance, deploy the application, obey orders, shut down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--port", type=int, required=True, help="for the instance's HTTP proxy")
    parser.add_argument("--best", action="store_true", help="sweep static settings, use the best")
    flags = parser.parse_args()
    cores.start_callees()
    serve.start(http_options={"host": "127.0.0.1", "port": flags.port})
    serve.run(app)
    cores.take_own()
    try:
        loads = BatchLoads(serve.get_app_handle("default"), best=flags.best)
        uvloop.run(obey(flags.orders, {"p50_ms": loads.p50_ms, "rate": loads.rate}))
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
