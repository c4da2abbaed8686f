"""What a replica changes of the process that it runs in.

A replica is a process of its own, and then the whole process is its to arrange. In a process
that it shares with others (tests that run an application in one process) it leaves things alone.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from remora.context import ReplicaContext, enter_replica, leave_replica, set_replica_context
from remora.errors import ReplicaStartError
from remora.observe.logs import ProcessLog
from remora.options.logging import LoggingConfig
from remora.replica.stuck import StuckWatch
from remora.types import Seconds
from remora.wire.control import Surroundings
from remora.wire.messages import Envelope

#: Told of each request that has ended: what it was, `OK`, `ERROR` or `CANCELLED`, and how long it took.
OnAnswered = Callable[[Envelope, str, Seconds], None]


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

    def log_as(self, config: LoggingConfig | None) -> OnAnswered | None:
        """Log as the deployment says; None: as the instance says.

        Returns:
            What logs each request that has ended; None: nothing is to.

        Raises:
            ReplicaStartError: the files cannot be opened.
        """

    def tend_log(self) -> None:
        """See to the size of the log."""


class OwnProcess:
    """A process that belongs to one replica."""

    def __init__(
        self,
        sys_path: tuple[str, ...] = (),
        cwd: str = "",
        stacks: Path | None = None,
        log: ProcessLog | None = None,
    ) -> None:
        """Take what its engine says of its `runtime_env`, as in `ProcessContext`.

        Args:
            sys_path: its own entries.
            cwd: its own working directory; empty: none.
            stacks: where to save where its threads are when it is stuck; None: nowhere.
            log: of the process; None: it is somebody else's.
        """
        self._sys_path = sys_path
        self._cwd = cwd
        self._stuck = None if stacks is None else StuckWatch(stacks)
        self._log = log

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

    def log_as(self, config: LoggingConfig | None) -> OnAnswered | None:
        """Send what is logged from now on where it belongs."""
        log = self._log
        if log is None:
            return None
        try:
            log.follow(config)
        except OSError as error:
            folder = config.logs_dir if config is not None else None
            raise ReplicaStartError(
                f"logging_config.logs_dir: no log can be written in {folder or 'the state folder'}: "
                f"{error.strerror}"
            ) from None
        if not log.has_access_lines:
            return None

        def on_answered(envelope: Envelope, outcome: str, took_s: Seconds) -> None:
            head = envelope.http
            what = f"CALL {envelope.method}" if head is None else f"{head.method} {head.path!r}"
            log.answered(f"{what} {outcome}", envelope.request_id, envelope.route, took_s)

        return on_answered

    def tend_log(self) -> None:
        """See to the size of the log, to which native code may have written."""
        if self._log is not None:
            self._log.tend()


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

    def log_as(self, config: LoggingConfig | None) -> OnAnswered | None:
        """What is logged here is the test's."""
        return None

    def tend_log(self) -> None:
        """What is logged here is the test's."""
