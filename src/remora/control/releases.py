"""The releases that are kept, in the engine's store: who deployed what when, and what it was.

One key each. A release is written before the state that counts it: one that was written and not
counted is overwritten by the next.

Rules: decides nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TypeVar

import msgspec

from remora.control.checkpoint import Section
from remora.core.releases import Record
from remora.options.resources import RuntimeEnv

T = TypeVar("T")

_log = logging.getLogger("remora.controller")

_KEY = "release/"
#: Enough to find out what changed; a config of usual size takes a kilobyte.
KEPT_RELEASES = 100
#: All of them together, in bytes.
KEPT_BYTES = 8 << 20
#: The newest and the one before stay, however large they are: without it there is no way back.
KEPT_ANYWAY = 2
#: Releases of programs that can come back; the code of each may take megabytes.
KEPT_WITH_CODE = 10
#: Releases whose environments stay built; the folders of each may take gigabytes.
KEPT_WITH_ENVIRONMENTS = 10


class ReleaseStore:
    """Releases of one instance."""

    def __init__(self, store: Section) -> None:
        self._store = store
        #: Numbers, oldest first.
        self._numbers: deque[int] = deque()
        #: Bytes of each.
        self._sizes: dict[int, int] = {}
        #: Of those that have code: what each needs.
        self._code: dict[int, set[str]] = {}
        #: Of those that have environments: which.
        self._environments: dict[int, set[RuntimeEnv]] = {}

    async def load(self) -> None:
        """Find out what there is.

        Raises:
            EngineError: the store cannot be read.
        """
        keys = await self._store.keys(_KEY)
        self._numbers = deque(int(key.removeprefix(_KEY)) for key in keys)
        for record in await self.read():
            self._note(record)

    @property
    def newest(self) -> int:
        """The highest number that is kept; 0: none is."""
        return max(self._numbers, default=0)

    async def put(self, record: Record) -> None:
        """Keep a release; the oldest one goes.

        Raises:
            EngineError: it could not be written.
        """
        data = msgspec.msgpack.encode(record)
        await self._store.put(_key(record.number), data)
        self._sizes[record.number] = len(data)
        if record.number not in self._numbers:
            self._numbers.append(record.number)
        for of_each in (self._code, self._environments):
            of_each.pop(record.number, None)
        self._note(record)
        while self._are_too_many():
            gone = self._numbers.popleft()
            self._sizes.pop(gone, None)
            for of_each in (self._code, self._environments):
                of_each.pop(gone, None)
            await self._store.delete(_key(gone))

    def _are_too_many(self) -> bool:
        num = len(self._numbers)
        return num > KEPT_RELEASES or (num > KEPT_ANYWAY and sum(self._sizes.values()) > KEPT_BYTES)

    def _note(self, record: Record) -> None:
        _keep(self._code, record.number, record.code_keys(), KEPT_WITH_CODE)
        _keep(self._environments, record.number, record.environments(), KEPT_WITH_ENVIRONMENTS)

    def code_keys(self) -> set[str]:
        """Keys of the code that is kept for a rollback."""
        return set().union(*self._code.values())

    def environments(self) -> set[RuntimeEnv]:
        """Environments that are kept for a rollback."""
        return set().union(*self._environments.values())

    async def read(self) -> list[Record]:
        """Read what is kept, oldest first; what cannot be read any more is left out.

        Raises:
            EngineError: the store cannot be read.
        """
        records = []
        for number in list(self._numbers):
            data = await self._store.get(_key(number))
            if data is not None and number in self._numbers:
                self._sizes[number] = len(data)
            try:
                if data is not None:
                    records.append(msgspec.msgpack.decode(data, type=Record))
            except (msgspec.MsgspecError, ValueError) as error:
                _log.warning("Release %d cannot be read and is left out: %s", number, error)
        return records


def _keep(of_each: dict[int, set[T]], number: int, needed: set[T], limit: int) -> None:
    """Note what a release needs, and forget that of the oldest beyond `limit`."""
    if needed:
        of_each[number] = needed
        while len(of_each) > limit:
            del of_each[min(of_each)]


def _key(number: int) -> str:
    return f"{_KEY}{number:012d}"
