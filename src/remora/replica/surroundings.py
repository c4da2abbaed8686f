"""What a replica changes of the process that it runs in.

A replica is a process of its own, and then the whole process is its to arrange. In a process
that it shares with others (tests that run an application in one process) it leaves things alone.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Protocol

from remora.context import ReplicaContext, enter_replica, leave_replica, set_replica_context
from remora.replica.stuck import StuckWatch
from remora.types import Seconds
from remora.wire.control import Surroundings


class Place(Protocol):
    """The process of a replica."""

    def settle(self, surroundings: Surroundings) -> None:
        """Make the user's modules importable."""

    def enter(self, context: ReplicaContext) -> None:
        """Say that the running task works for this replica."""

    def leave(self, context: ReplicaContext) -> None:
        """The replica is over."""

    def on_constructed(self) -> None:
        """The user's object is there."""

    def watch(self, timeout_s: Seconds) -> None:
        """Save where the threads are when the loop stands still for so long."""

    def leave_watch(self) -> None:
        """The loop is not watched any more."""

    def limit_threads(self, num_threads: int) -> None:
        """Run at most so many plain functions of ASGI apps at a time."""


class OwnProcess:
    """A process that belongs to one replica."""

    def __init__(
        self, sys_path: tuple[str, ...] = (), cwd: str = "", stacks: Path | None = None
    ) -> None:
        """Take what its engine says of its `runtime_env`, as in `ProcessContext`.

        Args:
            sys_path: its own entries.
            cwd: its own working directory; empty: none.
            stacks: where to save where its threads are when it is stuck; None: nowhere.
        """
        self._sys_path = sys_path
        self._cwd = cwd
        self._stuck = None if stacks is None else StuckWatch(stacks)

    def settle(self, surroundings: Surroundings) -> None:
        """Put the user's folders in front of `sys.path`, and go where the user was.

        What the replica has of its own comes first.
        """
        for entry in (*reversed(surroundings.sys_path), *reversed(self._sys_path)):
            if entry in sys.path and entry in self._sys_path:
                sys.path.remove(entry)
            if entry not in sys.path:
                sys.path.insert(0, entry)
        cwd = self._cwd or surroundings.cwd
        if cwd:
            os.chdir(cwd)

    def enter(self, context: ReplicaContext) -> None:
        """Everything in this process works for the replica."""
        set_replica_context(context)

    def leave(self, context: ReplicaContext) -> None:
        """The process ends as well."""

    def on_constructed(self) -> None:
        """What exists now lives as long as the process: collecting it again is wasted time."""
        gc.collect()
        gc.freeze()

    def watch(self, timeout_s: Seconds) -> None:
        """Watch the one loop of this process."""
        if self._stuck is not None:
            self._stuck.watch(timeout_s)

    def leave_watch(self) -> None:
        """Watch it no more."""
        if self._stuck is not None:
            self._stuck.stop()

    def limit_threads(self, num_threads: int) -> None:
        """FastAPI and Starlette run plain functions in threads that anyio counts."""
        if "anyio" in sys.modules:
            from anyio.to_thread import current_default_thread_limiter

            current_default_thread_limiter().total_tokens = num_threads


class SharedProcess:
    """A process with other replicas, a controller and a test in it."""

    def settle(self, surroundings: Surroundings) -> None:
        """The application came from this very process."""

    def enter(self, context: ReplicaContext) -> None:
        """The running task, and what it starts, works for the replica."""
        enter_replica(context)

    def leave(self, context: ReplicaContext) -> None:
        """Others go on."""
        leave_replica(context)

    def on_constructed(self) -> None:
        """What exists may be gone after the test."""

    def watch(self, timeout_s: Seconds) -> None:
        """The loop is everybody's."""

    def leave_watch(self) -> None:
        """It was not watched."""

    def limit_threads(self, num_threads: int) -> None:
        """Threads are shared with others, who have limits of their own."""
