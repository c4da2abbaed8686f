"""What a type checker sees of multiplexed functions. `mypy` is the test: see `warn_unused_ignores`."""

from __future__ import annotations

from typing import assert_type

import remora as serve
from remora.models.loader import ModelLoader
from remora.multiplex import MultiplexedMethod


class Model:
    @serve.multiplexed
    async def plain(self, model_id: str) -> int:
        return len(model_id)

    @serve.multiplexed(max_num_models_per_replica=2, pin=["a"])
    async def tuned(self, model_id: str) -> int:
        return len(model_id)


@serve.multiplexed
async def function(model_id: str) -> float:
    return float(model_id)


@serve.multiplexed(max_concurrent_loads=2)
async def tuned(model_id: str) -> float:
    return float(model_id)


async def check(model: Model) -> None:
    """Never run."""
    assert_type(model.plain, ModelLoader[int])
    assert_type(await model.plain("a"), int)
    assert_type(await model.tuned("a"), int)
    assert_type(await Model.tuned(model, "a"), int)
    assert_type(await function("1"), float)
    assert_type(await tuned("1"), float)
    assert_type(model.plain.loaded(), list[str])
    await model.plain.preload(["a"])
    await tuned.pin("1")
    model.tuned.unpin("a")
    await model.plain(1)  # type: ignore[arg-type]
    await function(model_id="1")  # type: ignore[call-arg]


def test_the_checked_functions_are_what_their_types_say() -> None:
    assert isinstance(function, ModelLoader)
    assert isinstance(Model.plain, MultiplexedMethod)
    assert isinstance(Model().tuned, ModelLoader)
