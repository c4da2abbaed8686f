"""A model in torch that works on many requests at once.

remora run server:app
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from starlette.requests import Request

import remora as serve


@serve.deployment(max_ongoing_requests=64)
class Parity:
    """Says whether a row of bits has an odd number of ones; a row may have any length."""

    # Rows of one length can be stacked; those of another are another batch.
    @serve.batch(max_batch_size=32, key_fn=len)
    async def odd(self, rows: list[list[int]]) -> list[bool | Exception]:
        # In a thread: meanwhile the replica reads the requests of the next batch.
        answers = await asyncio.to_thread(self.predict, torch.tensor(rows))
        return [
            answer if set(row) <= {0, 1} else ValueError(f"{row} has more than bits")
            for row, answer in zip(rows, answers, strict=True)
        ]

    def predict(self, bits: torch.Tensor) -> list[bool]:
        """Stand for a model: one call for the whole batch."""
        odd: list[bool] = (bits.sum(dim=1) % 2 == 1).tolist()
        return odd

    async def __call__(self, request: Request) -> Any:
        if request.url.path == "/statistics":
            return self.odd.statistics()
        row = [int(digit) for digit in request.query_params["row"]]
        try:
            return {"odd": await self.odd(row)}
        except ValueError as error:
            return {"error": str(error)}


app = Parity.bind()
