"""Entry points for tests of the embedded engine. Reached through PYTHONPATH, run in its processes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

from remora.engine.base import ProcessContext


def _end_on_sigterm(context: ProcessContext) -> None:
    def end(*_: object) -> None:
        with (context.home.root / "ends.txt").open("a", encoding="utf-8") as file:
            file.write(f"{context.process_id}\n")
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    (context.home.root / f"waits-{os.getpid()}").touch()


def idle(context: ProcessContext) -> None:
    """Wait for SIGTERM, write down that it came, end."""
    _end_on_sigterm(context)
    while True:
        signal.pause()


def answer(context: ProcessContext) -> None:
    """Answer every connection on the one socket with pid, a random number and an env variable."""
    _end_on_sigterm(context)
    (listener,) = context.sockets.values()
    while True:
        connection, _ = listener.accept()
        with connection:
            text = f"{os.getpid()} {random.random()} {os.environ.get('COLOUR', '')}"
            connection.sendall(text.encode())


def crash(context: ProcessContext) -> None:
    """End the way the argument says: an exit status, or a negative signal number."""
    how = context.args["how"]
    if how < 0:
        os.kill(os.getpid(), -how)
        signal.pause()
    sys.exit(how)


def tells_gpu(context: ProcessContext) -> None:
    """Exit with the number of the GPU that it sees, or 99 for none."""
    sys.exit(int(os.environ.get("CUDA_VISIBLE_DEVICES") or 99))


def tells_environment(context: ProcessContext) -> None:
    """Exit with the number in the file `status` of its working directory."""
    sys.exit(int((Path(context.cwd) / "status").read_text(encoding="utf-8")))


def raises(context: ProcessContext) -> None:
    """Fail as user code fails."""
    raise RuntimeError(f"{context.process_id} fails on purpose")


def stubborn(context: ProcessContext) -> None:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (context.home.root / "stubborn").touch()
    while True:
        signal.pause()


def parent(context: ProcessContext) -> None:
    """Spawn one process in its own group and one in another, and write their pids."""
    children = [
        subprocess.Popen(["sleep", "1000"]),
        subprocess.Popen(["sleep", "1000"], process_group=0),
    ]
    pids = Path(context.home.root / "children.tmp")
    pids.write_text(" ".join(str(child.pid) for child in children), encoding="utf-8")
    pids.rename(context.home.root / "children.txt")
    while True:
        signal.pause()


def prints(context: ProcessContext) -> None:
    """Print one line and wait."""
    print(f"printed by {context.process_id}")
    idle(context)


def control(context: ProcessContext) -> None:
    """Act as the controller or a proxy does: answer on the inherited socket."""
    assert isinstance(context.sockets.get("control") or context.sockets["http"], socket.socket)
    answer(context)
