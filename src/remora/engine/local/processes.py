"""Which processes the supervisor has, and what has to be done about them. Pure.

Theory of operation: a process is WANTED (nobody was told to fork it), ASKED (the template was
told), FORKED (it has a pid), UP (its address takes connections), and then gone from the table.
Every step is reported by somebody else: the template's children on their pipe, the kernel through
`waitpid`. The table takes the reports in any order that can happen, and answers with orders that
the supervisor carries out. Time is an argument.

Invariant: every process that entered the table ends in exactly one `Gone`.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import Enum

from remora.engine.local.protocol import Message

#: The first restart comes at once: a crash is most often a single one.
_FIRST_DELAY_S = 0.1
#: Longest wait between two restarts of a process that crashes in a row.
_MAX_DELAY_S = 2.0
#: A process that was up for this long has not crashed in a row.
HEALTHY_AFTER_S = 10.0


class Stage(Enum):
    """How far a process has come."""

    WANTED = "wanted"
    ASKED = "asked"
    FORKED = "forked"
    UP = "up"


@dataclass
class Process:
    """A process that was asked for and is not gone.

    Attributes:
        request: what the template is told, an `{"op": "fork", …}` message.
        system: True: controller or proxy, restarted when it ends.
        generation: which template was told to fork it; 0: none.
        pid: 0 until it is known.
        ending: True: it was asked to end, so its end is expected.
        kill_at: when it is killed; None: not decided.
        failure: why it could not start, in its own words.
        up_since: when it came up; None: not yet.
    """

    request: Message
    system: bool
    stage: Stage = Stage.WANTED
    generation: int = 0
    pid: int = 0
    address: str = ""
    ending: bool = False
    kill_at: float | None = None
    failure: str = ""
    up_since: float | None = None

    @property
    def process_id(self) -> str:
        """The id that its asker chose."""
        return str(self.request["id"])


@dataclass(frozen=True)
class Fork:
    """Tell the template to fork this process."""

    process: Process


@dataclass(frozen=True)
class Terminate:
    """Send SIGTERM to the process."""

    pid: int


@dataclass(frozen=True)
class Kill:
    """Kill the process and its group."""

    pid: int


@dataclass(frozen=True)
class Up:
    """Report that the process takes connections."""

    process: Process


@dataclass(frozen=True)
class Gone:
    """Report that the process has ended; it is out of the table."""

    process: Process
    reason: str

    @property
    def expected(self) -> bool:
        """It was asked to end, or ended of its own accord without an error."""
        return self.process.ending or self.reason == exit_reason(0)


Order = Fork | Terminate | Kill | Up | Gone


class ProcessTable:
    """The processes by id and by pid. Pure: orders out, nothing done."""

    def __init__(self) -> None:
        self._by_id: dict[str, Process] = {}
        self._by_pid: dict[int, Process] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> list[Process]:
        """Every process, in the order in which they were asked for."""
        return list(self._by_id.values())

    def get(self, process_id: str) -> Process | None:
        """The process of that id; None: it is gone or never was."""
        return self._by_id.get(process_id)

    def sessions(self) -> set[int]:
        """Sessions of the living processes: each leads its own."""
        return set(self._by_pid)

    def add(self, request: Message, *, system: bool = False) -> list[Order]:
        """Take in a process to start. Asking twice for one id is asking once."""
        known = self._by_id.get(str(request["id"]))
        if known is not None:
            return [Up(known)] if known.stage is Stage.UP else []
        process = Process(request, system)
        self._by_id[process.process_id] = process
        return [Fork(process)]

    def forked(self, process_id: str, pid: int) -> list[Order]:
        """The template's child reports a pid."""
        process = self._by_id.get(process_id)
        if process is None:
            # It was given up meanwhile: nobody waits for it.
            return [Kill(pid)]
        if process.stage in (Stage.WANTED, Stage.ASKED):
            process.stage = Stage.FORKED
            process.pid = pid
            self._by_pid[pid] = process
            if process.ending:
                return [Terminate(pid)]
        return []

    def up(self, process_id: str, pid: int, address: str, now: float) -> list[Order]:
        """The process says that its address takes connections."""
        orders = self.forked(process_id, pid)
        process = self._by_pid.get(pid)
        if process is None or process.stage is Stage.UP:
            return orders
        process.stage = Stage.UP
        process.address = address
        process.up_since = now
        return [*orders, Up(process)]

    def failed(self, process_id: str, pid: int, reason: str) -> list[Order]:
        """The process, or the template for it (pid 0), says why it cannot start."""
        process = self._by_id.get(process_id)
        if process is None:
            return []
        process.failure = reason
        if pid:
            # Its exit follows, and tells the same reason.
            return self.forked(process_id, pid)
        return self._remove(process, f"could not start: {reason}")

    def exited(self, pid: int, wait_status: int) -> list[Order]:
        """The kernel reports the end of a child; unknown pids are orphans that were adopted."""
        process = self._by_pid.get(pid)
        if process is None:
            return []
        if process.failure:
            return self._remove(process, f"could not start: {process.failure}")
        return self._remove(process, exit_reason(wait_status))

    def stop(self, process_id: str, timeout_s: float, now: float) -> list[Order]:
        """Ask a process to end by `timeout_s` from now; an earlier deadline stays."""
        process = self._by_id.get(process_id)
        if process is None:
            return []
        first = not process.ending
        process.ending = True
        kill_at = now + max(0.0, timeout_s)
        process.kill_at = kill_at if process.kill_at is None else min(process.kill_at, kill_at)
        # What is shared may load for minutes, or for ever, before anything is forked.
        is_loading = process.stage is Stage.ASKED and bool(process.request.get("shared"))
        if process.stage is Stage.WANTED or is_loading:
            return self._remove(process, "stopped before it was started")
        return [Terminate(process.pid)] if first and process.pid else []

    def kill(self, process_id: str, now: float) -> list[Order]:
        """End a process at once."""
        orders = self.stop(process_id, 0.0, now)
        return orders if process_id not in self._by_id else self.overdue(now)

    def overdue(self, now: float) -> list[Order]:
        """Kill what should have ended by now."""
        orders: list[Order] = []
        for process in self._by_pid.values():
            if process.kill_at is not None and process.kill_at <= now:
                # Once more after a while: a group can grow while it is being killed.
                process.kill_at = now + 1.0
                orders.append(Kill(process.pid))
        return orders

    def next_deadline(self) -> float | None:
        """When `overdue` is to be called next; None: nothing waits."""
        return min(
            (p.kill_at for p in self._by_pid.values() if p.kill_at is not None), default=None
        )

    def asked(self, process: Process, generation: int) -> None:
        """A template was told to fork the process."""
        process.stage = Stage.ASKED
        process.generation = generation

    def lost(self, generation: int) -> list[Order]:
        """A template is gone, and nothing of it is under way: ask again for what it did not fork."""
        orders: list[Order] = []
        for process in self.all():
            if process.stage is Stage.ASKED and process.generation == generation:
                process.stage = Stage.WANTED
                orders += (
                    self._remove(process, "stopped before it was started")
                    if process.ending
                    else [Fork(process)]
                )
        return orders

    def failed_to_load(self, generation: int, reason: str) -> list[Order]:
        """A template that loads something is gone: what it was told to fork did not start."""
        waiting = [
            process
            for process in self.all()
            if process.stage is Stage.ASKED and process.generation == generation
        ]
        return [
            order
            for process in waiting
            for order in self._remove(process, f"could not start: {process.failure or reason}")
        ]

    def give_up_unforked(self, reason: str) -> list[Order]:
        """Take out every process that has no pid."""
        unforked = [p for p in self._by_id.values() if not p.pid]
        return [order for process in unforked for order in self._remove(process, reason)]

    def _remove(self, process: Process, reason: str) -> list[Order]:
        del self._by_id[process.process_id]
        self._by_pid.pop(process.pid, None)
        return [Gone(process, reason)]


def exit_reason(wait_status: int) -> str:
    """Say in words how a process ended. Pure."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        core = " (core dumped)" if os.WCOREDUMP(wait_status) else ""
        return f"killed by {name}{core}"
    return f"exit status {os.waitstatus_to_exitcode(wait_status)}"


def restart_delay_s(crashes_in_row: int) -> float:
    """Wait this long before the next start. Pure.

    Args:
        crashes_in_row: ends without having been healthy in between, 1 for the first.
    """
    if crashes_in_row <= 1:
        return 0.0
    # The exponent is bounded: a process may crash for years.
    return min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(crashes_in_row - 2, 10))


def crashes_in_row(before: int, up_since: float | None, now: float) -> int:
    """Count a new end of a process that is to run always. Pure.

    Args:
        before: ends in a row before this one.
        up_since: when it came up; None: it never did.
        now: when it ended.
    """
    healthy = up_since is not None and now - up_since >= HEALTHY_AFTER_S
    return 1 if healthy else before + 1


def is_healthy(process: Process | None, now: float) -> bool:
    """Tell one that has been up for long enough; None: there is none just now. Pure."""
    up_since = None if process is None else process.up_since
    return up_since is not None and now - up_since >= HEALTHY_AFTER_S
