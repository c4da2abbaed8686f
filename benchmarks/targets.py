"""Things that are measured: each can be started, waited for, asked, weighed and stopped.

`HttpTarget` is a server that answers HTTP. `DriverTarget` is a process that runs a load itself
(the caller of a handle, for instance) and takes its orders over a socket pair; see `drivers/`.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.http_load import HttpRequest, is_answered
from benchmarks.processes import Command, TargetError

#: Repository root: the working directory of every command, so `benchmarks` can be imported there.
ROOT = Path(__file__).resolve().parent.parent
#: Pause between two attempts to reach a server that refuses connections. Short against the
#: shortest start measured (0.3 s), long enough to leave both cores to the server.
_POLL_INTERVAL_S = 0.002


class Target(Protocol):
    """What a session needs from every target."""

    def start(self) -> float:
        """Start it, wait until it answers, return the seconds from the command to the answer."""
        ...

    def stop(self) -> None:
        """End all its processes. Calling it twice is harmless."""
        ...


@dataclass(frozen=True)
class Launch:
    """A command line in full.

    Attributes:
        argv: the command.
        environment: added to ours.
    """

    argv: Sequence[str]
    environment: Mapping[str, str | None] = field(default_factory=dict)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def new_folder(parent: Path, name: str) -> Path:
    """Return a new empty folder inside `parent`."""
    for number in range(10_000):
        folder = parent / f"{name}-{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            return folder
    raise TargetError(f"{parent} holds 10000 folders named {name}: remove it")


class HttpTarget:
    """A server that answers HTTP on a port of its own.

    Args:
        name: names its folder and its messages.
        launch: makes the command from (port, state folder); called for each start.
        scratch: the folder in which each start gets a fresh state folder.
        path: of the request that loads it.
        body: None for GET, else the POST body.
        ready_timeout_s: the first 200 must have arrived by then.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[int, Path], Launch],
        scratch: Path,
        *,
        path: str = "/",
        body: bytes | None = None,
        ready_timeout_s: float = 30.0,
    ) -> None:
        self.name = name
        self._launch = launch
        self._scratch = scratch
        self._path = path
        self._body = body
        self._ready_timeout_s = ready_timeout_s
        self._command: Command | None = None
        self.folder = scratch
        self.request = HttpRequest(0, path, body)

    def start(self) -> float:
        """Start the server and return the seconds until its first 200.

        Raises:
            TargetError: it exited, or did not answer in time.
        """
        self.folder = new_folder(self._scratch, self.name)
        self.request = HttpRequest(free_port(), self._path, self._body)
        launch = self._launch(self.request.port, self.folder)
        self._command = Command(launch.argv, launch.environment, self.folder / "output.log", ROOT)
        try:
            return self._wait_answer(self._command)
        except TargetError:
            self.stop()
            raise

    def _wait_answer(self, command: Command) -> float:
        deadline = command.started_at + self._ready_timeout_s
        while (now := time.perf_counter()) < deadline:
            if is_answered(self.request, timeout_s=min(5.0, deadline - now)):
                return time.perf_counter() - command.started_at
            command.require_alive()
            time.sleep(_POLL_INTERVAL_S)
        raise TargetError(
            f"{self.name} did not answer 200 on {self.request.url} within "
            f"{self._ready_timeout_s:.0f} s; its log ends: {command.log_tail()}"
        )

    def pss_mb(self) -> float:
        """Return the memory of all its processes, in 10^6 bytes."""
        return self._running().pss_mb()

    def require_alive(self) -> None:
        """Raise `TargetError` when the server has ended."""
        self._running().require_alive()

    def stop(self) -> None:
        """End all its processes and remove its state."""
        if self._command is not None:
            self._command.stop()
            self._command = None
            shutil.rmtree(self.folder, ignore_errors=True)

    def _running(self) -> Command:
        if self._command is None:
            raise TargetError(f"{self.name} is not started")
        return self._command


class DriverTarget:
    """A process that runs loads on order and reports one figure for each.

    Args:
        name: names its folder and its messages.
        launch: makes the command from (descriptor of the order socket, state folder).
        scratch: the folder in which each start gets a fresh state folder.
        ready_timeout_s: the driver must have reported ready by then.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[int, Path], Launch],
        scratch: Path,
        *,
        ready_timeout_s: float = 30.0,
    ) -> None:
        self.name = name
        self._launch = launch
        self._scratch = scratch
        self._ready_timeout_s = ready_timeout_s
        self._command: Command | None = None
        self._orders: socket.socket | None = None
        self.folder = scratch

    def start(self) -> float:
        """Start the driver and return the seconds until it is ready.

        Raises:
            TargetError: it exited, reported an error, or was not ready in time.
        """
        self.folder = new_folder(self._scratch, self.name)
        ours, theirs = socket.socketpair()
        with theirs:
            launch = self._launch(theirs.fileno(), self.folder)
            self._command = Command(
                launch.argv,
                launch.environment,
                self.folder / "output.log",
                ROOT,
                pass_fds=[theirs.fileno()],
            )
        self._orders = ours
        try:
            self._receive("start", self._ready_timeout_s)
        except TargetError:
            self.stop()
            raise
        return time.perf_counter() - self._command.started_at

    def ask(self, operation: str, *, duration_s: float, **arguments: int) -> float:
        """Run one load and return its figure.

        Raises:
            TargetError: the driver failed or did not answer within `duration_s` and 30 s more.
        """
        if self._orders is None:
            raise TargetError(f"{self.name} is not started")
        order = {"operation": operation, "duration_s": duration_s, **arguments}
        try:
            self._orders.sendall(json.dumps(order).encode() + b"\n")
        except OSError as error:
            raise TargetError(f"{self.name} is gone: {error}") from error
        return self._receive(operation, duration_s + 30.0)

    def _receive(self, operation: str, timeout_s: float) -> float:
        if self._orders is None or self._command is None:
            raise TargetError(f"{self.name} is not started")
        line = b""
        deadline = time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            self._orders.settimeout(0.2)
            try:
                part = self._orders.recv(65536)
            except TimeoutError:
                if time.monotonic() > deadline:
                    tail = self._command.log_tail()
                    raise TargetError(
                        f"{self.name} did not finish `{operation}` within {timeout_s:.0f} s; "
                        f"its log ends: {tail}"
                    ) from None
                self._command.require_alive()
                continue
            except OSError as error:
                raise TargetError(f"{self.name} is gone: {error}") from error
            if not part:
                raise TargetError(f"{self.name} ended during `{operation}`: {self._tail()}")
            line += part
        answer = json.loads(line)
        if "error" in answer:
            raise TargetError(f"{self.name} failed in `{operation}`: {answer['error']}")
        return float(answer["value"])

    def _tail(self) -> str:
        return self._command.log_tail() if self._command else ""

    def stop(self) -> None:
        """Let the driver end by itself, then end what is left."""
        if self._orders is not None:
            self._orders.close()
            self._orders = None
        if self._command is not None:
            self._command.stop()
            self._command = None
            shutil.rmtree(self.folder, ignore_errors=True)
