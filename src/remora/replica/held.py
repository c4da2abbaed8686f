"""A slot that a caller has reserved: a request that was let in and whose content comes later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection


class HeldSlot:
    """Counts as an ongoing request until its caller fills it, gives it back, or goes away."""

    __slots__ = ("_connection", "_number")

    def __init__(self, connection: ReplicaConnection, number: int) -> None:
        self._connection = connection
        self._number = number

    def cancel(self) -> None:
        """The caller gives it back, or is gone."""
        self._connection.release(self._number)
