"""What a replica tells its callers of itself, so that routers can choose with it in mind.

Nobody asks and nobody polls: a caller gets the notice after its greeting, and a new one when
something has changed; many changes in one turn of the loop are one notice.

Rules: on the replica's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from remora.errors import RemoraError
from remora.wire.codec import pack
from remora.wire.messages import FrameKind, ReplicaNotice

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection

#: Every caller holds the notice of every replica, and gets it again with each change.
MAX_NOTICE_BYTES = 256 * 1024
_NOTHING = pack(ReplicaNotice())


class Notices:
    """The present notice, and who is to get it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connections: Iterable[ReplicaConnection]
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._packed = _NOTHING
        self._sent = _NOTHING
        self._is_due = False
        self.current = ReplicaNotice()

    def announce(
        self,
        *,
        models: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace parts of the notice; what is None stays as it was.

        Raises:
            RemoraError: it is too large, or holds what is no plain data.
        """
        old = self.current
        new = ReplicaNotice(
            models=old.models if models is None else tuple(models),
            metadata=old.metadata if metadata is None else dict(metadata),
            stats=old.stats if stats is None else dict(stats),
        )
        try:
            packed = pack(new)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise RemoraError(
                f"What a replica tells its routers must be plain data (numbers, texts, lists, "
                f"dicts): {error}"
            ) from error
        if len(packed) > MAX_NOTICE_BYTES:
            raise RemoraError(
                f"What a replica tells its routers takes {len(packed)} bytes; at most "
                f"{MAX_NOTICE_BYTES} are sent. Return less from record_routing_stats or "
                "record_replica_metadata."
            )
        self.current, self._packed = new, packed
        if packed != self._sent and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._send)

    def greet(self, connection: ReplicaConnection) -> None:
        """Tell a new caller, if there is anything to tell."""
        # What has not been sent to the others yet comes to this one with them.
        if self._sent != _NOTHING:
            connection.write(FrameKind.NOTICE, 0, self._sent)

    def _send(self) -> None:
        self._is_due = False
        if self._packed == self._sent:
            return
        self._sent = self._packed
        for connection in self._connections:
            if connection.is_greeted:
                connection.write(FrameKind.NOTICE, 0, self._packed)
