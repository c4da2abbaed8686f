"""What the embedded engine asks of Linux that Python's `os` does not offer.

Rules: no state, no decisions about the instance. `ctypes` is imported on first use: the
supervisor pays for it after the template was forked.

How a process that must go is found: every process of an instance carries the instance's random
token in its environment (`TOKEN_VARIABLE`), whatever it forked or executed, and the processes of
a replica are in the replica's session. A process that clears its environment *and* leaves its
session is not found: it wanted to be on its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

#: Environment variable that marks what belongs to an instance.
TOKEN_VARIABLE = "REMORA_INSTANCE"

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

#: Places of fields in /proc/<pid>/stat, counted behind the command's closing bracket.
_STATE, _SESSION, _STARTED, _ARG_START, _ARG_END = 0, 3, 19, 45, 46

#: Between two looks at whether killed processes are gone.
_POLL_S = 0.004


def _prctl(option: int, argument: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_title(title: str) -> None:
    """Show `title` in `ps` and `top`.

    Written over the process's arguments and never beyond them: the environment behind them stays
    readable in /proc, which is how leftovers are found. A longer title is cut off.
    """
    import ctypes

    text = title.encode("utf-8", "replace")
    name = ctypes.create_string_buffer(text[:15])
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)
    try:
        fields = _stat_fields("self")
    except OSError:
        return
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    room = end - start
    if start == 0 or room < 2:
        return
    # A last byte that is not NUL tells the kernel to show the area up to its first NUL.
    ctypes.memmove(start, text[: room - 2].ljust(room - 1, b"\0") + b"\1", room)


def started_ticks(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks; None: there is none. Tells it from a later one."""
    try:
        return int(_stat_fields(pid)[_STARTED])
    except (OSError, IndexError):
        return None


def _stat_fields(pid: int | str) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def members(token: str, sessions: Collection[int], spare: Collection[int] = ()) -> list[int]:
    """Find living processes that carry `token` or are in one of `sessions`.

    Args:
        token: of an instance; empty: look at sessions alone.
        sessions: ids of sessions; a replica's is its pid.
        spare: pids to leave out. The caller is left out always.
    """
    left_out = {os.getpid(), *spare}
    mark = f"{TOKEN_VARIABLE}={token}".encode() if token else b""
    return [pid for pid in _pids() if pid not in left_out and _belongs(pid, mark, sessions)]


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def _belongs(pid: int, mark: bytes, sessions: Collection[int]) -> bool:
    try:
        fields = _stat_fields(pid)
        if fields[_STATE] in "ZX":
            return False
        if int(fields[_SESSION]) in sessions:
            return True
        if not mark:
            return False
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (OSError, IndexError):
        # Gone in the meantime, or not ours to look at.
        return False


def kill_members(
    token: str, sessions: Collection[int], *, spare: Collection[int] = (), timeout_s: float = 1.0
) -> list[int]:
    """Kill what `members` finds until it finds nothing more. Blocks.

    Returns:
        Pids that were still there after `timeout_s`: [] unless the kernel cannot end them.
    """
    deadline = time.monotonic() + timeout_s
    while left := members(token, sessions, spare):
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left
        time.sleep(_POLL_S)
    return []


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone or never have been ours."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_group(pid: int) -> None:
    """Kill a process and its group; before it became the group's leader, the process alone."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def raise_fd_limit() -> None:
    """Use as many file descriptors as this user may: every connection costs one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # Some kernels refuse "unlimited" here; the soft limit then stays, which is no failure.
        pass


def listener_on(port: int) -> str:
    """Describe the process that listens on a TCP port: `pid 17 (nginx)`; empty: not found.

    Reads all of /proc: for error messages only.
    """
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return ""
    for pid in _pids():
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                holds = any(str(Path(entry.path).readlink()) in inodes for entry in entries)
            if holds:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0\1")
                shown = command.replace(b"\0", b" ").decode(errors="replace")
                return f"pid {pid} ({shown[:60]})"
        except OSError:
            # Gone in the meantime, or not ours to look at.
            continue
    return ""


def _listening_inodes(port: int) -> set[str]:
    wanted, listening = f"{port:04X}", "0A"
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == listening and fields[1].rpartition(":")[2] == wanted:
                inodes.add(fields[9])
    return inodes
