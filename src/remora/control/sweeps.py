"""Tells the engine now and then which environments may be needed, so that it removes the rest.

A program's own instance shares its folder with the one that `remora start` begins there, which does
not run meanwhile. What that one would need stays.

Rules: decides nothing; what is needed follows from the state and the releases.
"""

from __future__ import annotations

import logging

from remora.control.checkpoint import Section
from remora.control.releases import ReleaseStore
from remora.control.state_file import StateFile
from remora.core.state import ControllerState
from remora.engine.base import Engine
from remora.errors import RemoraError
from remora.options.resources import RuntimeEnv
from remora.types import Seconds

_log = logging.getLogger("remora.controller")

#: A start has better to do at first; a program that ends sooner leaves it to the next one.
FIRST_S: Seconds = 10.0
#: Also how exactly is known when something was last needed.
EVERY_S: Seconds = 600.0


class Sweeps:
    """Those of one instance. One event loop."""

    def __init__(self, engine: Engine, releases: ReleaseStore, *, bound: bool) -> None:
        """Make it.

        Args:
            engine: sweeps.
            releases: of this instance.
            bound: the instance is a program's own.
        """
        self._engine = engine
        self._releases = releases
        self._bound = bound
        self._due_s: Seconds | None = None
        #: What the other instance of the folder needs; None: not looked at yet.
        self._others: set[RuntimeEnv] | None = None

    async def look(self, state: ControllerState, now: Seconds) -> None:
        """Have what is not needed removed, if it is time to.

        Args:
            state: as it is saved.
            now: the time.
        """
        if self._due_s is None:
            self._due_s = now + FIRST_S
        # Of a state that could not be read whole, nobody knows yet what it needs.
        if now < self._due_s or state.is_rebuilding:
            return
        self._due_s = now + EVERY_S
        try:
            others = await self._of_others()
        except RemoraError as error:
            _log.debug("Environments are not swept: %s", error)
            return
        if others is not None:
            self._engine.sweep(state.environments() | self._releases.environments() | others)

    async def _of_others(self) -> set[RuntimeEnv] | None:
        """Say what the other instance needs; None: it cannot be known."""
        # A program's instance forgets what it was when it begins: it needs nothing.
        if not self._bound:
            return set()
        if self._others is None:
            section = Section.of_instance(self._engine, bound=False)
            state = await StateFile(section).peek()
            if state is None:
                return None
            releases = ReleaseStore(section)
            await releases.load()
            self._others = state.environments() | releases.environments()
        return self._others
