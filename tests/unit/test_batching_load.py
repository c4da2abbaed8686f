"""Nothing tuned against the best static setting, on a model of virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from remora.batching import batch as typed_batch
from remora.testing.virtual_time import run

pytestmark = pytest.mark.slow

batch: Any = typed_batch
CALLS = 600
STATIC = [(1, 0.0), *((size, wait) for size in (4, 32) for wait in (0.0, 0.001, 0.01))]


def rate(callers: int, run_s: tuple[float, float], **options: Any) -> float:
    """Calls per second of callers who come back 0.1 to 0.6 ms after each answer."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        rng = random.Random(1)

        @batch(**options)
        async def work(items: list[int]) -> list[int]:
            await asyncio.sleep(run_s[0] + run_s[1] * len(items))
            return items

        async def caller() -> None:
            for _ in range(CALLS // callers):
                await work(0)
                await asyncio.sleep(rng.uniform(0.0001, 0.0006))

        begin = loop.time()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return (CALLS // callers) * callers / (loop.time() - begin)

    return run(main())


@pytest.mark.parametrize("callers", [1, 8, 64])
@pytest.mark.parametrize("run_s", [(0.002, 0.0001), (0.01, 0.0005)])
def test_nothing_tuned_is_within_5_percent_of_the_best_static_setting(
    callers: int, run_s: tuple[float, float]
) -> None:
    ours = rate(callers, run_s, max_batch_size=32)
    best = max(
        rate(callers, run_s, max_batch_size=size, batch_wait_timeout_s=wait_s, wait_policy="always")
        for size, wait_s in STATIC
    )
    assert ours >= 0.95 * best


def test_never_waiting_would_be_far_from_it() -> None:
    """What the learning is for: without it, batches of one and of seven alternate."""
    never = rate(8, (0.002, 0.0001), max_batch_size=32, batch_wait_timeout_s=0)
    assert never < 0.9 * rate(8, (0.002, 0.0001), max_batch_size=32)
