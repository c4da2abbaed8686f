"""The deployment of the row of many models: four replicas with room for fifty models each."""

from __future__ import annotations

import asyncio

import remora as serve

NUM_REPLICAS = 4
MODELS_PER_REPLICA = 50
#: Long against a call, short enough that a session sees thousands of loads.
LOAD_S = 0.01


@serve.deployment(num_replicas=NUM_REPLICAS, max_ongoing_requests=20)
class Models:
    """Counts what it loads."""

    def __init__(self) -> None:
        self.num_loads = 0

    @serve.multiplexed(max_num_models_per_replica=MODELS_PER_REPLICA)
    async def get_model(self, model_id: str) -> str:
        """Take as long as a load."""
        await asyncio.sleep(LOAD_S)
        self.num_loads += 1
        return model_id

    async def ask(self) -> tuple[str, str, int]:
        """Use the model; return it, which replica this is, and how many it has loaded so far."""
        model = await self.get_model(serve.get_multiplexed_model_id())
        return model, serve.get_replica_context().replica_tag, self.num_loads


app = Models.bind()
