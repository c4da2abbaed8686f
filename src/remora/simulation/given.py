"""What is simulated: deployments, their load, and how long their requests take."""

from __future__ import annotations

import random
from dataclasses import dataclass

from remora.config import DeploymentConfig
from remora.simulation.load import Load
from remora.types import Seconds


@dataclass(frozen=True)
class Service:
    """How long requests take, where the load does not say.

    Attributes:
        mean_s: seconds, > 0.
        variation: standard deviation by mean; 0: all the same, 1: as if by chance.
        parallel: how many requests a replica works on at the same time; others that it has taken
            wait inside of it. None: as many as it takes.
        start_s: seconds until a new replica serves.
    """

    mean_s: Seconds = 0.1
    variation: float = 0.0
    parallel: int | None = None
    start_s: Seconds = 0.5

    def draw(self, rng: random.Random) -> Seconds:
        """How long one request takes."""
        if not self.variation:
            return self.mean_s
        shape = 1 / self.variation**2
        return rng.gammavariate(shape, self.mean_s / shape)


@dataclass(frozen=True)
class Simulated:
    """A deployment, its load and its requests."""

    name: str
    config: DeploymentConfig
    load: Load
    service: Service = Service()
