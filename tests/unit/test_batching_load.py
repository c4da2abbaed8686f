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


def rate(
    callers: int,
    run_s: tuple[float, float],
    pause_s: tuple[float, float] = (0.0001, 0.0006),
    noise: float = 0.0,
    calls: int = CALLS,
    **options: Any,
) -> float:
    """Calls per second of callers who come back after a while; `run_s` is of a batch and an item."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        rng = random.Random(1)

        @batch(**options)
        async def work(items: list[int]) -> list[int]:
            took_s = run_s[0] + run_s[1] * len(items)
            await asyncio.sleep(took_s * rng.uniform(1 - noise, 1 + noise))
            return items

        async def caller() -> None:
            for _ in range(calls // callers):
                await work(0)
                await asyncio.sleep(rng.uniform(*pause_s))

        begin = loop.time()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return (calls // callers) * callers / (loop.time() - begin)

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


@pytest.mark.parametrize("callers", [32, 48, 64])
@pytest.mark.parametrize("pause_s", [(0.0001, 0.001), (0.0005, 0.003)])
def test_nobody_is_waited_for_where_the_items_and_not_the_batch_take_the_time(
    callers: int, pause_s: tuple[float, float]
) -> None:
    options: dict[str, Any] = {
        "max_batch_size": 32,
        "run_s": (0.00025, 0.00004),
        "pause_s": pause_s,
    }
    ours = rate(callers, calls=3000, **options)
    never = rate(callers, calls=3000, batch_wait_timeout_s=0, **options)
    assert ours >= 0.97 * never


@pytest.mark.parametrize("noise", [0.2, 0.5])
def test_runs_of_uneven_length_do_not_spoil_what_is_learned(noise: float) -> None:
    never = rate(8, (0.002, 0.0001), noise=noise, max_batch_size=32, batch_wait_timeout_s=0)
    assert never < 0.9 * rate(8, (0.002, 0.0001), noise=noise, max_batch_size=32)


def test_never_waiting_would_be_far_from_it() -> None:
    """What the learning is for: without it, batches of one and of seven alternate."""
    never = rate(8, (0.002, 0.0001), max_batch_size=32, batch_wait_timeout_s=0)
    assert never < 0.9 * rate(8, (0.002, 0.0001), max_batch_size=32)
