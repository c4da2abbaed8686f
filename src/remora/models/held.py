"""The multiplexed models of one replica, of all its loaders together.

The loaders are the user's (`multiplex`), the replica tells its routers what they hold: here both
meet without knowing each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from remora.observe.replica_counts import LoadCounts

#: Every router of every process keeps what it is told. A replica with more tells of those that
#: were asked for last.
MAX_TOLD_BYTES = 100_000


class Loader(Protocol):
    """What loads models and lets them go.

    Attributes:
        counts: what it did.
    """

    counts: LoadCounts

    def loaded(self) -> list[str]:
        """Models that are here, the one that is asked for most recently last."""

    @property
    def held(self) -> list[str]:
        """Models that are here or will be, the most recent last."""

    async def close(self) -> None:
        """Let all of them go."""


class HeldModels:
    """Knows all loaders of a replica.

    Attributes:
        tell: told of every change, with the ids of all models; None: nobody is told.
        is_closed: the replica has stopped.
    """

    def __init__(self) -> None:
        self.tell: Callable[[list[str]], None] | None = None
        self.is_closed = False
        self._told: set[str] = set()
        self._loaders: list[Loader] = []

    @property
    def loaders(self) -> tuple[Loader, ...]:
        """Those that have loaded anything."""
        return tuple(self._loaders)

    def join(self, loader: Loader) -> None:
        """One more loader."""
        self._loaders.append(loader)

    def on_change(self) -> None:
        """One of the loaders may hold other models than before."""
        if self.tell is None:
            return
        ids = self.ids()
        if set(ids) != self._told:
            self._told = set(ids)
            self.tell(ids)

    def ids(self) -> list[str]:
        """The ids of all models, as far as they fit into what is told."""
        found: dict[str, None] = {}
        room = MAX_TOLD_BYTES
        for loader in self._loaders:
            for model_id in reversed(loader.held):
                # A text takes at most four bytes a letter, and a few for its length.
                room -= 4 * len(model_id) + 5
                if room < 0:
                    return list(found)
                found[model_id] = None
        return list(found)

    async def close(self) -> None:
        """The replica stops: unload everything."""
        self.is_closed = True
        loaders, self._loaders = self._loaders, []
        for loader in loaders:
            await loader.close()
