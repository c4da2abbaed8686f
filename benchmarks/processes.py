"""Start a command, know every process that belongs to it, weigh them, end them.

Rules: only processes that this module started, or that descend from those, are ever signalled.

Theory of operation: a command may put children into other sessions or leave them behind when it
ends. Membership is therefore the closure of four clues: descent from the started process, its
session, a marker in the environment (read from `/proc/<pid>/environ`), and every process that was
a member before. A process that rewrites its title may destroy the third clue, which is why the
others exist.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Environment variable that marks every process of one target.
MARKER = "BENCH_TARGET"


class TargetError(Exception):
    """A server under measurement did not start, answer or survive; the text says which and why."""


@dataclass(frozen=True)
class ProcessRow:
    """What membership is decided from.

    Attributes:
        pid: the process.
        parent: its parent's pid.
        session: its session id.
        marked: whether its environment carries the marker of the target.
    """

    pid: int
    parent: int
    session: int
    marked: bool


def members(table: Sequence[ProcessRow], root: int, known: Iterable[int] = ()) -> frozenset[int]:
    """Return the pids in `table` that belong to the command whose first process is `root`. Pure.

    Args:
        table: all processes of the machine.
        root: pid of the started process, which also leads its own session.
        known: pids that were members before; those still in the table stay members.
    """
    before = set(known)
    found = {
        row.pid
        for row in table
        if row.pid == root or row.session == root or row.marked or row.pid in before
    }
    while True:
        children = {row.pid for row in table if row.parent in found} - found
        if not children:
            return frozenset(found)
        found |= children


def read_process_table(marker: str) -> list[ProcessRow]:
    """Read `/proc` once. Processes that end meanwhile are left out."""
    needle = f"{MARKER}={marker}".encode()
    rows = []
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            rows.append(
                ProcessRow(process.pid, process.ppid(), os.getsid(process.pid), needle in environ)
            )
        except (psutil.Error, OSError):
            continue
    return rows


def user_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a user's command: nothing set for Remora, and bytecode kept. Pure.

    Without bytecode each process compiles every module anew, which no user's does a second time.
    """
    return {
        key: value
        for key, value in environment.items()
        if not key.startswith("REMORA_") and key != "PYTHONDONTWRITEBYTECODE"
    }


class Command:
    """A started command and everything that it started.

    Args:
        argv: the command line.
        environment: added to a copy of ours; a value of None removes the variable.
        log: file that receives standard output and error.
        cwd: working directory.
        pass_fds: descriptors the child inherits.

    Raises:
        TargetError: there is no such command.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str | None],
        log: Path,
        cwd: Path,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self._marker = secrets.token_hex(8)
        # (pid, creation time): a pid alone could have been given to somebody else meanwhile.
        self._seen: dict[int, float] = {}
        env = user_environment(os.environ)
        env.update({key: value for key, value in environment.items() if value is not None})
        env[MARKER] = self._marker
        with log.open("ab") as output:
            self.started_at = time.perf_counter()
            try:
                self._process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd=cwd,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
            except OSError as error:
                raise TargetError(f"`{self.argv[0]}` cannot be run: {error}") from error

    def require_alive(self) -> None:
        """Raise when the first process has ended.

        Raises:
            TargetError: with its exit status and the end of its log.
        """
        if (status := self._process.poll()) is not None:
            raise TargetError(f"`{self.line}` exited with status {status}: {self.log_tail()}")

    @property
    def line(self) -> str:
        """The command as one line, without the folder of the executable."""
        return " ".join([Path(self.argv[0]).name, *self.argv[1:]])

    def log_tail(self, max_bytes: int = 1500) -> str:
        """Return the end of what the command printed."""
        text = self.log.read_bytes()[-max_bytes:].decode(errors="replace").strip()
        return text or "(it printed nothing)"

    def pids(self) -> frozenset[int]:
        """Return the living processes that belong to the command."""
        alive = {pid for pid, born in self._seen.items() if _is_same(pid, born)}
        found = members(read_process_table(self._marker), self._process.pid, alive)
        for pid in found - alive:
            try:
                self._seen[pid] = psutil.Process(pid).create_time()
            except psutil.Error:
                continue
        return frozenset(pid for pid in found if _is_same(pid, self._seen.get(pid)))

    def pss_mb(self) -> float:
        """Return the proportional set size of all processes of the command, in 10^6 bytes."""
        return sum(_pss_bytes(pid) for pid in self.pids()) / 1e6

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the first process to end, and kill what is left after `grace_s`."""
        self.pids()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._wait_gone(grace_s)
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._wait_gone(5.0)

    def _wait_gone(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._process.poll()
            if not self.pids():
                return
            time.sleep(0.02)


def _is_same(pid: int, born: float | None) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return parse_pss_bytes(text)


def parse_pss_bytes(smaps_rollup: str) -> int:
    """Return the `Pss:` line of a `smaps_rollup` file in bytes. Pure.

    Raises:
        ValueError: there is no such line.
    """
    for line in smaps_rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no 'Pss:' line; the kernel needs CONFIG_PROC_PAGE_MONITOR")
