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
        """Return where the stacks of a replica are, from now on; empty: none were saved."""
        if self._home is None:
            return ""
        hidden, shown = (
            self._home.stacks_file(replica_id),
            self._home.saved_stacks_file(replica_id),
        )
        with suppress(OSError):
            if hidden.stat().st_size > 0:
                # The replica has it open, and goes on writing in it.
                hidden.rename(shown)
        return str(shown) if shown.exists() else ""

    def tidy(self, replica_id: ReplicaID) -> None:
        """A replica is gone: take away a file in which there is nothing."""
        if self._home is not None and not self.of(replica_id):
            with suppress(OSError):
                self._home.stacks_file(replica_id).unlink(missing_ok=True)
