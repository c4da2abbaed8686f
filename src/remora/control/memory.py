"""What outlives a controller: the state, the releases, the code, and the log of events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from remora.control.checkpoint import CodeStore, EventLog, Section
from remora.control.releases import ReleaseStore
from remora.control.state_file import Loaded, StateFile
from remora.core import events as ev
from remora.core.reconcile import Step
from remora.core.releases import Record, ReleaseEvent
from remora.core.state import ControllerState
from remora.errors import EngineError, RemoraError
from remora.types import Seconds

_log = logging.getLogger("remora.controller")

#: The event log is written at least so often.
LOG_S: Seconds = 5.0


class Memory:
    """Keeps it in the engine's store.

    Attributes:
        code: what replicas are made of.
        log: of what happened.
        releases: that a rollback knows.
        is_behind: the last state could not be saved.
    """

    def __init__(self, store: Section, unix: Callable[[], float]) -> None:
        """Make a memory that is empty until `load`.

        Args:
            store: where.
            unix: tells the time of day, for people.
        """
        self.code = CodeStore(store)
        self.log = EventLog(store)
        self.releases = ReleaseStore(store)
        self.is_behind = False
        self._file = StateFile(store)
        self._unix = unix
        self._logged_s: Seconds = 0.0

    async def load(self) -> Loaded:
        """Read everything.

        Raises:
            EngineError: the store cannot be read.
        """
        loaded = await self._file.load(self._unix())
        await self.code.load()
        await self.releases.load()
        await self.log.load()
        if not loaded.has_header:
            # A number that was given away twice would hide what it stood for. While the header is
            # there, a release beyond it was written and refused, and is overwritten.
            loaded.state.release = max(loaded.state.release, self.releases.newest)
        return loaded

    def note(self, decided: Step) -> None:
        """Keep in mind what a step has changed, for the next time that the state is saved."""
        self._file.note(decided)

    async def save(self, decided: Step, before: ControllerState, event: ev.AnyEvent | None) -> None:
        """Save what a step has decided.

        Args:
            decided: by the step.
            before: the state that it came from.
            event: the request that took part in it; None: none did.

        Raises:
            EngineError: it could not be saved; that is logged, once until it works again.
        """
        self.note(decided)
        try:
            if event is not None:
                await self._keep_release(decided.state, before, event)
            await self._file.save(decided.state)
        except EngineError as error:
            if not self.is_behind:
                _log.warning(
                    "The state could not be saved. Everything keeps serving; a controller that "
                    "restarts now knows less. %s",
                    error,
                )
            self.is_behind = True
            raise
        self.is_behind = False

    async def _keep_release(
        self, decided: ControllerState, before: ControllerState, event: ev.AnyEvent
    ) -> None:
        if decided.release > before.release and isinstance(event, ReleaseEvent):
            record = Record(number=decided.release, unix_s=self._unix(), event=event)
            await self.releases.put(record)

    async def drop_code(self, state: ControllerState) -> None:
        """Delete code that neither the state nor a release needs."""
        try:
            await self.code.sweep(state.code_keys(), self.releases.code_keys())
        except EngineError as error:
            _log.debug("Old code could not be deleted: %s", error)

    async def write_log_if_due(self) -> None:
        """Write the log when it is long, or old."""
        if self.log.is_due or asyncio.get_running_loop().time() - self._logged_s > LOG_S:
            await self.write_log()

    async def write_log(self) -> None:
        """Write what the log does not hold yet."""
        self._logged_s = asyncio.get_running_loop().time()
        try:
            await self.log.flush()
        except RemoraError as error:
            _log.debug("The event log could not be written: %s", error)
