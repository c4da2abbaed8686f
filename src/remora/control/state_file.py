"""The state in the engine's store: written when it changed, read when a controller begins.

Theory of operation: the state lies there in pieces (`core/saved_state.py`). A change of one piece
is one write. A change of several is first written down as a whole, under `JOURNAL`, and then done
piece by piece, so that whoever reads finds all of it or nothing of it, whatever was killed when.

Rules: decides nothing; the only module that knows these keys.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec

from remora.control.checkpoint import Section
from remora.core import saved_state as saved
from remora.core.reconcile import Step
from remora.core.state import ControllerState
from remora.errors import EngineError
from remora.types import DeploymentID

_log = logging.getLogger("remora.controller")

#: Pieces that are being written: by key; None: the key is being deleted.
JOURNAL = "state-journal"
#: Where pieces that cannot be read are kept, below the time at which that was found.
ASIDE = "unreadable-"


@dataclass(frozen=True)
class Loaded:
    """What was found.

    Attributes:
        state: the durable part.
        is_whole: False: nothing was saved yet, or something could not be read. Whatever runs and
            is not in `state` should be asked what it is.
        has_header: what concerns everything, the number of the latest release too, was read.
    """

    state: ControllerState
    is_whole: bool
    has_header: bool


class StateFile:
    """The durable part of the state."""

    def __init__(self, store: Section) -> None:
        self._store = store
        #: What the store says, by key; the header without its event id.
        self._saved: dict[str, bytes] = {}
        #: What may have changed since the last save that worked.
        self._touched: set[DeploymentID] = set()
        self._touched_apps: set[str] = set()
        #: The journal that is there and not done; empty: none is there.
        self._journal: dict[str, bytes | None] = {}

    # ------------------------------------------------------------------------------- reading

    async def load(self, unix_s: float) -> Loaded:
        """Read the state; what cannot be read of it is kept aside.

        Raises:
            EngineError: the store itself cannot be read.
        """
        await self._finish_journal(unix_s)
        pieces = await self._pieces()
        reading = saved.read(pieces)
        if reading.unreadable:
            await self._put_aside(reading.unreadable, pieces, unix_s)
        state = reading.state
        present = saved.encode(state, with_event_id=False)
        # In another form (of an older version, or with defaults left out) it is written again.
        self._saved = {
            key: piece
            for key, piece in present.items()
            if pieces.get(key) == piece or key == saved.HEADER
        }
        if pieces.get(saved.HEADER) != saved.header_piece(state):
            self._saved.pop(saved.HEADER, None)
        self._touched_apps.update(state.applications)
        self._touched.update(
            DeploymentID(name, app.name)
            for app in state.applications.values()
            for name in app.deployments
        )
        return Loaded(
            state,
            is_whole=bool(pieces) and not reading.unreadable,
            has_header=saved.HEADER in pieces and saved.HEADER not in reading.unreadable,
        )

    async def peek(self) -> ControllerState | None:
        """Read the state of an instance that is not this one, and change nothing.

        None: it is not known, because not all of it can be read as it lies there.

        Raises:
            EngineError: the store itself cannot be read.
        """
        if await self._store.get(JOURNAL) is not None:
            return None
        reading = saved.read(await self._pieces())
        return None if reading.unreadable else reading.state

    async def _pieces(self) -> dict[str, bytes]:
        keys = [
            key
            for prefix in (saved.HEADER, saved.APPS, saved.DEPLOYMENTS)
            for key in await self._store.keys(prefix)
            if prefix != saved.HEADER or key == saved.HEADER
        ]
        return {key: data for key in keys if (data := await self._store.get(key)) is not None}

    async def _finish_journal(self, unix_s: float) -> None:
        data = await self._store.get(JOURNAL)
        if data is None:
            return
        try:
            self._journal = msgspec.msgpack.decode(data, type=dict[str, bytes | None])
        except (msgspec.MsgspecError, ValueError) as error:
            await self._put_aside({JOURNAL: f"it is damaged: {error}"}, {JOURNAL: data}, unix_s)
            return
        await self._do_journal()

    async def _put_aside(
        self, unreadable: dict[str, str], pieces: dict[str, bytes], unix_s: float
    ) -> None:
        aside = f"{ASIDE}{int(unix_s)}/"
        for key in unreadable:
            if key in pieces:
                await self._store.put(aside + key, pieces[key])
                await self._store.delete(key)
        reasons = "; ".join(f"{key}: {why}" for key, why in sorted(unreadable.items())[:5])
        more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        _log.warning(
            "Part of the saved state cannot be read (%s%s). It is kept below %r in the store. "
            "Applications of which replicas run are put together from those; deploy the others "
            "again.",
            reasons,
            more,
            aside,
        )

    # ------------------------------------------------------------------------------- writing

    def note(self, step: Step) -> None:
        """Remember what a step may have changed, for the next save."""
        self._touched |= step.touched
        self._touched_apps |= step.touched_apps

    async def save(self, state: ControllerState) -> None:
        """Write what changed of all that was noted.

        Raises:
            EngineError: it could not be written; what was written before is still there, and the
                next save tries again.
        """
        changes = self._changes(state)
        if self._journal or len(changes) > 1:
            await self._save_many({**self._journal, **changes})
        else:
            for key, piece in changes.items():
                await self._write(key, piece)
        self._note_saved(changes, state)
        self._touched.clear()
        self._touched_apps.clear()

    def _changes(self, state: ControllerState) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        if saved.header_piece(state, with_event_id=False) != self._saved.get(saved.HEADER):
            found[saved.HEADER] = saved.header_piece(state)
        for name in sorted(self._touched_apps):
            found[saved.app_key(name)] = saved.app_piece(state, name)
        for where in sorted(self._touched):
            found[saved.deployment_key(where)] = saved.deployment_piece(state, where)
        return {
            key: piece
            for key, piece in found.items()
            if key == saved.HEADER or piece != self._saved.get(key)
        }

    def _note_saved(self, changes: dict[str, bytes | None], state: ControllerState) -> None:
        for key, piece in changes.items():
            if piece is None:
                self._saved.pop(key, None)
            else:
                self._saved[key] = piece
        if saved.HEADER in changes:
            self._saved[saved.HEADER] = saved.header_piece(state, with_event_id=False)

    async def _save_many(self, changes: dict[str, bytes | None]) -> None:
        if not changes:
            return
        await self._store.put(JOURNAL, msgspec.msgpack.encode(changes))
        self._journal = changes
        try:
            await self._do_journal()
        except EngineError as error:
            # It is saved: the next save, or the next controller, goes on with it.
            _log.debug("The saved state is not in order yet: %s", error)

    async def _do_journal(self) -> None:
        for key, piece in self._journal.items():
            await self._write(key, piece)
        await self._store.delete(JOURNAL)
        self._journal = {}

    async def _write(self, key: str, piece: bytes | None) -> None:
        if piece is None:
            await self._store.delete(key)
        else:
            await self._store.put(key, piece)
