"""A small torch model behind `@batch`, once as it comes and once to be tuned by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import remora as serve

#: What a request carries: one row of features.
FEATURES = 256
#: What the sweep of static settings goes up to as well.
LARGEST_BATCH = 32
_HIDDEN = 1024
_CLASSES = 10


@serve.deployment(max_ongoing_requests=200)
class Mlp:
    """Three layers; a batch of 32 takes about five times as long as a batch of one."""

    def __init__(self) -> None:
        # The caller and the rest of the instance need the other cores.
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, _HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(_HIDDEN, _HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(_HIDDEN, _CLASSES),
        ).eval()

    def _predict(self, rows: list[Any]) -> list[int]:
        with torch.inference_mode():
            answers: list[int] = self.model(torch.from_numpy(np.stack(rows))).argmax(1).tolist()
            return answers

    @serve.batch(max_batch_size=LARGEST_BATCH)
    async def default(self, rows: list[Any]) -> list[int]:
        """Nothing tuned: only said how many rows the model can take."""
        return self._predict(rows)

    @serve.batch(wait_policy="always")
    async def static(self, rows: list[Any]) -> list[int]:
        """Tuned by `tune`, and waiting as it says whatever happens."""
        return self._predict(rows)

    def tune(self, max_batch_size: int, batch_wait_timeout_s: float) -> None:
        """Set what a person would find by trying."""
        self.static.set_max_batch_size(max_batch_size)
        self.static.set_batch_wait_timeout_s(batch_wait_timeout_s)


app = Mlp.bind()
