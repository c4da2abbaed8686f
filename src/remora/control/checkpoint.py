"""The controller's memory in the engine's store: code, and the log of what happened.

Keys: `code/<sha256>` (what replicas are made of, megabytes, written once), `log/<number>` (what
was observed, in pieces, for explaining); the state itself has `state_file.py`. An instance that is
bound to a program has keys of its own, below `bound/`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable

import msgspec

from remora.core.events import AnyEvent, LogEntry
from remora.engine.base import Engine
from remora.errors import EngineError

_CODE = "code/"
_LOG = "log/"
#: Enough for hours of a quiet instance and for every step of the last incident.
KEPT_LOG_ENTRIES = 4000
#: Entries per key.
_PIECE = 500


class Section:
    """The part of the engine's store below a prefix.

    What a program deployed in an instance of its own must not come back in one that `remora
    start` began, and what was deployed there must outlive the program's.
    """

    def __init__(self, engine: Engine, prefix: str = "") -> None:
        self._engine = engine
        self._prefix = prefix

    @classmethod
    def of_instance(cls, engine: Engine, *, bound: bool) -> Section:
        """Choose the part of an instance that is bound to a program, or of one that is not."""
        return cls(engine, "bound/" if bound else "")

    async def get(self, key: str) -> bytes | None:
        """Read a value; None: no such key."""
        return await self._engine.get(self._prefix + key)

    async def put(self, key: str, value: bytes) -> None:
        """Write a value durably.

        Raises:
            EngineError: it could not be written; the old value stays.
        """
        await self._engine.put(self._prefix + key, value)

    async def delete(self, key: str) -> None:
        """Forget a key."""
        await self._engine.delete(self._prefix + key)

    async def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, sorted."""
        found = await self._engine.keys(self._prefix + prefix)
        return [key.removeprefix(self._prefix) for key in found]


class CodeStore:
    """What replicas are made of, by hash: equal code is kept once."""

    def __init__(self, store: Section) -> None:
        self._store = store
        self._known: set[str] = set()
        self._at_hand: dict[str, bytes] = {}
        #: Keys of requests that are not decided yet.
        self._pinned: Counter[str] = Counter()

    async def load(self) -> None:
        """Find out what is there.

        Raises:
            EngineError: the store cannot be read.
        """
        self._known = set(await self._store.keys(_CODE))

    async def put(self, code: bytes) -> str:
        """Keep `code` and pin it; `unpin` its key once a state refers to it, or will not.

        Raises:
            EngineError: it could not be written.
        """
        key = _CODE + hashlib.sha256(code).hexdigest()
        self._pinned[key] += 1
        try:
            if key not in self._known:
                await self._store.put(key, code)
                self._known.add(key)
        except BaseException:
            self.unpin([key])
            raise
        self._at_hand[key] = code
        return key

    def pin(self, keys: Iterable[str]) -> None:
        """Let a request hold on to these keys, there or not; `unpin` ends it."""
        self._pinned.update(keys)

    def unpin(self, keys: Iterable[str]) -> None:
        """End a request's hold on these keys."""
        self._pinned.subtract(keys)
        self._pinned += Counter()

    async def get(self, key: str) -> bytes:
        """Read code.

        Raises:
            EngineError: it is not there, or cannot be read.
        """
        code = self._at_hand.get(key)
        if code is None:
            code = await self._store.get(key)
        if code is None:
            raise EngineError(f"The code {key} is missing from the store: deploy again.")
        self._at_hand[key] = code
        return code

    def has(self, key: str) -> bool:
        """Code lies there under this key."""
        return key in self._known

    async def sweep(self, needed: set[str], kept: set[str]) -> None:
        """Delete what neither a state, nor a pending request, nor a kept release refers to.

        Args:
            needed: what replicas may be started from.
            kept: what may come back.

        Raises:
            EngineError: the store cannot be written; the next sweep tries again.
        """
        for key in list(self._at_hand):
            if key not in needed and not self._pinned[key]:
                del self._at_hand[key]
        for key in self._known - needed - kept:
            # Looked at one by one: a request may come while others are being deleted.
            if self._pinned[key]:
                continue
            self._known.discard(key)
            try:
                await self._store.delete(key)
            except EngineError:
                self._known.add(key)
                raise


class EventLog:
    """What the controller observed, the last few thousand ticks of it."""

    def __init__(self, store: Section) -> None:
        self._store = store
        #: Keys of full pieces, oldest first.
        self._full: deque[str] = deque()
        #: The piece that is being filled; rewritten as a whole.
        self._piece: list[LogEntry] = []
        self._number = 0
        self._dirty = False

    async def load(self) -> None:
        """Find out which pieces there are; a new one is begun after them.

        Raises:
            EngineError: the store cannot be read.
        """
        self._full = deque(await self._store.keys(_LOG))
        if self._full:
            self._number = int(self._full[-1].removeprefix(_LOG)) + 1

    def append(self, entry: LogEntry) -> None:
        """Add an entry; `flush` writes it."""
        self._piece.append(entry)
        self._dirty = True
        # A disk that stays full must not fill the memory.
        del self._piece[:-KEPT_LOG_ENTRIES]

    @property
    def is_due(self) -> bool:
        """Enough has come together to write it without waiting for a quiet moment."""
        return len(self._piece) >= _PIECE

    async def flush(self) -> None:
        """Write what was added, and drop the oldest.

        Raises:
            EngineError: it could not be written; the next flush tries again.
        """
        if not self._dirty:
            return
        key = f"{_LOG}{self._number:012d}"
        count = len(self._piece)
        await self._store.put(key, msgspec.msgpack.encode(self._piece))
        self._dirty = len(self._piece) > count
        if count < _PIECE:
            return
        del self._piece[:count]
        self._full.append(key)
        self._number += 1
        while len(self._full) > KEPT_LOG_ENTRIES // _PIECE:
            await self._store.delete(self._full.popleft())

    async def read(self) -> list[LogEntry]:
        """Read everything that is kept, oldest first.

        Raises:
            EngineError: the store cannot be read.
        """
        # Both may be others by the end.
        full, entries = list(self._full), list(self._piece)
        return [entry for key in full for entry in await self._read_piece(key)] + entries

    async def find(self, wanted: Callable[[AnyEvent], bool]) -> list[AnyEvent]:
        """Look for events in everything that is kept, oldest first, beside the caller's loop.

        Args:
            wanted: says which; called in a thread.

        Raises:
            EngineError: the store cannot be read.
        """

        def look(entries: list[LogEntry]) -> list[AnyEvent]:
            return [event for entry in entries for event in entry.events if wanted(event)]

        full, latest = list(self._full), list(self._piece)
        found: list[AnyEvent] = []
        for key in full:
            found += await asyncio.to_thread(look, await self._read_piece(key))
        return found + await asyncio.to_thread(look, latest)

    async def _read_piece(self, key: str) -> list[LogEntry]:
        data = await self._store.get(key)
        if data is None:
            return []
        return await asyncio.to_thread(msgspec.msgpack.decode, data, type=list[LogEntry])
