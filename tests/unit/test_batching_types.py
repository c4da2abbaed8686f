"""What a type checker sees of batched functions. `mypy` is the test: see `warn_unused_ignores`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

import remora as serve
from remora.batching import Batched, BatchedStream


class Model:
    @serve.batch
    async def plain(self, items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @serve.batch(max_batch_size=3)
    async def tuned(self, items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @serve.batch(key_fn=len)
    async def stream(self, items: list[str]) -> AsyncIterator[list[float]]:
        yield [float(item) for item in items]

    @serve.batch
    async def two(self, items: list[int], others: list[str]) -> list[float]:
        return [float(len(items) + len(others))]


@serve.batch
async def function(items: list[int]) -> list[str]:
    return [str(item) for item in items]


@serve.batch()
async def source(items: list[int]) -> AsyncIterator[list[str]]:
    yield [str(item) for item in items]


async def check(model: Model) -> None:
    """Never run."""
    assert_type(function, Batched[[int], str])
    assert_type(source, BatchedStream[[int], str])
    assert_type(await model.plain(1), str)
    assert_type(await model.tuned(1), str)
    assert_type(await function(1), str)
    assert_type(await model.two(1, "a"), float)
    assert_type([item async for item in model.stream("1")], list[float])
    assert_type([item async for item in source(1)], list[str])
    model.plain.set_max_batch_size(3)
    model.stream.set_batch_wait_timeout_s(0.5)
    assert_type(function.statistics(), dict[str, Any])
    # Callers pass single values, not lists, of the right type.
    await model.plain("1")  # type: ignore[arg-type]
    await function([1])  # type: ignore[arg-type]
    await model.plain(1, 2)  # type: ignore[call-arg]
    model.stream(1)  # type: ignore[arg-type]


def test_the_checked_functions_are_what_their_types_say() -> None:
    assert isinstance(function, Batched)
    assert isinstance(source, BatchedStream)
    assert isinstance(Model.plain, Batched)
