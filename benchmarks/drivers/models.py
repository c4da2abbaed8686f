"""Asks for a thousand models, a few of them very often, and counts how many requests load one.

The ideal beside it is one cache with the room of all replicas together, which sees the requests in
the order in which they are sent and always knows best where a model is.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import uvloop

import remora as serve
from benchmarks.apps.remora_models import MODELS_PER_REPLICA, NUM_REPLICAS, app
from benchmarks.drivers.orders import Operation, obey

NUM_MODELS = 1000
#: The k-th model is asked for in proportion to k to this power.
ZIPF_EXPONENT = -1.1
IN_FLIGHT = 16
#: Requests before the first sample: caches are full and in order by then.
WARM_UP = 3000


class LRU:
    """The ideal: a cache of model ids."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._models: OrderedDict[str, None] = OrderedDict()

    def ask(self, model_id: str) -> bool:
        """Ask for a model; tell whether it was there."""
        hit = model_id in self._models
        self._models[model_id] = None
        self._models.move_to_end(model_id)
        if len(self._models) > self._room:
            self._models.popitem(last=False)
        return hit


class ModelLoads:
    """The load that the harness can order.

    Args:
        handle: of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._rng = random.Random(5)
        self._names = [f"model-{number}" for number in range(NUM_MODELS)]
        self._weights = list(
            itertools.accumulate((number + 1) ** ZIPF_EXPONENT for number in range(NUM_MODELS))
        )
        self._ideal = LRU(NUM_REPLICAS * MODELS_PER_REPLICA)
        self._loads: dict[str, int] = {}

    def operations(self) -> Mapping[str, Operation]:
        """Return the load by name."""
        return {"model_hits_percent": self.model_hits_percent}

    async def warm_up(self) -> None:
        """Fill the caches, the ideal one too."""
        await self._run(WARM_UP, float("inf"))

    async def model_hits_percent(self, duration_s: float) -> float:
        """Return the hit rate as a percentage of the ideal one."""
        loads_before = sum(self._loads.values())
        num_calls, ideal_hits = await self._run(1 << 62, time.perf_counter() + duration_s)
        hits = num_calls - (sum(self._loads.values()) - loads_before)
        return 100 * hits / ideal_hits

    async def _run(self, most: int, end: float) -> tuple[int, int]:
        num_calls = ideal_hits = 0

        async def caller() -> None:
            nonlocal num_calls, ideal_hits
            while num_calls < most and time.perf_counter() < end:
                [name] = self._rng.choices(self._names, cum_weights=self._weights)
                num_calls += 1
                ideal_hits += self._ideal.ask(name)
                call = self._handle.options(multiplexed_model_id=name).ask.remote()
                model, replica, num_loads = await call
                if model != name:
                    raise AssertionError(f"asked for {name}, got {model}")
                self._loads[replica] = max(num_loads, self._loads.get(replica, 0))

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return num_calls, ideal_hits


async def _serve(descriptor: int) -> None:
    loads = ModelLoads(serve.get_app_handle("default"))
    await loads.warm_up()
    await obey(descriptor, loads.operations())


def main() -> None:
    """Start an instance, deploy the application, fill its caches, obey orders, shut down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--port", type=int, required=True, help="for the instance's HTTP proxy")
    flags = parser.parse_args()
    serve.start(http_options={"host": "127.0.0.1", "port": flags.port})
    serve.run(app)
    try:
        uvloop.run(_serve(flags.orders))
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
