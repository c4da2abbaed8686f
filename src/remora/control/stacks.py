"""Finds the stacks that stuck replicas have saved on this machine (`replica/stuck.py`)."""

from __future__ import annotations

from contextlib import suppress

from remora.home import Home
from remora.types import ReplicaID


class SavedStacks:
    """The files of one instance."""

    def __init__(self, home: Home | None) -> None:
        """Look in the folder of an instance; None: nobody saves any."""
        self._home = home

    def of(self, replica_id: ReplicaID) -> str:
        """Return where the stacks of a replica are; empty: none were saved."""
        if self._home is None:
            return ""
        path = self._home.stacks_file(replica_id)
        with suppress(OSError):
            if path.stat().st_size > 0:
                return str(path)
        return ""

    def tidy(self, replica_id: ReplicaID) -> None:
        """A replica is gone: take away a file in which there is nothing."""
        if self._home is not None and not self.of(replica_id):
            with suppress(OSError):
                self._home.stacks_file(replica_id).unlink(missing_ok=True)
