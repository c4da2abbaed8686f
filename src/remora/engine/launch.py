"""Starting an instance, from a program or a command line.

`launch` returns as soon as the process at its top exists, so that the caller imports the user's
code meanwhile; `Launch.wait_ready` says how it went.

A *bound* instance belongs to the program that started it: it holds one end of a pipe, and when
that end closes, because the program ended or was killed, the instance ends. The other kind stays
until it is told to end.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import sys
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from remora.config import ADMIN, LOCAL_ENGINE, AdminOptions, EngineOptions, HTTPOptions
from remora.engine import linux
from remora.engine.claim import Owner, find_owner, folder_error, left_behind
from remora.errors import InstanceError
from remora.home import Home
from remora.options.logging import LoggingConfig
from remora.options.resources import AS_FOUND, MachineOptions
from remora.options.tracing import TracingConfig
from remora.wire.codec import plain, to_json
from remora.wire.grpc import GrpcSetup, digest

__all__ = [
    "AS_USUAL",
    "EntryPoints",
    "Launch",
    "LaunchSetup",
    "Owner",
    "Ready",
    "end",
    "find_owner",
    "launch",
    "left_behind",
    "wait_while_ending",
]

#: Where the output of an instance goes that no terminal belongs to.
LOG_NAME = "instance.log"
#: A log of this size is put aside when the next instance starts, and the one before it deleted.
_FULL_LOG_BYTES = 10 * 1024 * 1024

#: Between two looks at whether a proxy listens for gRPC.
_LOOK_EVERY_S = 0.01

#: The process at the top of an instance, by engine.
_TOP = {"local": "remora.engine.local.supervisor", "ray": "remora.engine.ray.top"}

#: A file that the new process has open: its descriptor, path, flags and mode.
_OpenFile: TypeAlias = tuple[int, int, str, int, int]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)


@dataclass(frozen=True)
class EntryPoints:
    """What the processes of an instance run besides replicas."""

    controller: str = "remora.control.main:main"
    proxy: str = "remora.proxy.main:main"


@dataclass(frozen=True)
class LaunchSetup:
    """How an instance is to be. What is None was not asked for, and is as it is by default.

    Attributes:
        http: the front door; with `host=None` there is none.
        grpc: the front door for gRPC; None: there is none.
        machine: what this machine is said to have.
        engine: what runs its processes.
        admin: where the REST API listens.
        logging: how its processes log.
        tracing: where its processes trace; None: nowhere.
    """

    http: HTTPOptions | None = None
    grpc: GrpcSetup | None = None
    machine: MachineOptions = AS_FOUND
    engine: EngineOptions | None = None
    admin: AdminOptions | None = None
    logging: LoggingConfig | None = None
    tracing: TracingConfig | None = None


AS_USUAL = LaunchSetup()


@dataclass(frozen=True)
class Ready:
    """An instance that is up.

    Attributes:
        pid: of its supervisor.
        http_url: of its front door; empty without HTTP.
        grpc_address: `host:port` where it serves gRPC; empty without.
        joined: the cluster ran it already; it stays whatever this program does.
    """

    pid: int
    http_url: str
    grpc_address: str = ""
    joined: bool = False


class Launch:
    """A supervisor that was started by this program."""

    def __init__(self, home: Home, pid: int, ready_fd: int, owner_fd: int | None) -> None:
        self.home = home
        self.pid = pid
        self._ready_fd = ready_fd
        self._owner_fd = owner_fd
        self._pidfd = os.pidfd_open(pid)
        self._result: Ready | InstanceError | None = None
        me = weakref.ref(self)
        # A child that this program forks must not keep the instance alive after it.
        os.register_at_fork(after_in_child=lambda: _let_go(me()))

    @property
    def joined(self) -> bool:
        """The cluster ran it already."""
        return isinstance(self._result, Ready) and self._result.joined

    def wait_ready(self, timeout_s: float = 10.0) -> Ready:
        """Wait until the instance is up: its sockets take connections.

        Raises:
            InstanceError: it cannot be; says why and what to do.
        """
        if self._result is None:
            deadline = time.monotonic() + timeout_s
            self._result = self._read_result(timeout_s)
            if isinstance(self._result, Ready) and self._result.grpc_address:
                self._wait_grpc(self._result.grpc_address, deadline)
        if isinstance(self._result, InstanceError):
            raise self._result
        return self._result

    def _read_result(self, timeout_s: float) -> Ready | InstanceError:
        line = b""
        deadline = time.monotonic() + timeout_s
        while _readable(self._ready_fd, deadline - time.monotonic()):
            data = os.read(self._ready_fd, 65536)
            line += data
            if not data or data.endswith(b"\n"):
                break
        else:
            raise InstanceError(
                f"The supervisor (pid {self.pid}) of {self.home.root} did not come up within "
                f"{timeout_s:g} s. Is the machine very busy, or the folder on a slow disk?"
            )
        if not line.endswith(b"\n"):
            return InstanceError(
                f"The supervisor (pid {self.pid}) of {self.home.root} ended before it was up. "
                f"What it printed is above, or in {self.home.logs / LOG_NAME}."
            )
        message = json.loads(line)
        if "error" in message:
            return InstanceError(message["error"])
        joined = bool(message.get("joined"))
        return Ready(self.pid, message["ready"], message.get("grpc", ""), joined)

    def _wait_grpc(self, address: str, deadline: float) -> None:
        """Wait until a proxy listens for gRPC: no kernel queues connections before that."""
        host, _, port = address.rpartition(":")
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
                return
            except OSError as error:
                last = error
            if self.wait_gone(_LOOK_EVERY_S):
                return  # Whoever works with it next hears that it has ended.
            if time.monotonic() >= deadline:
                self._result = InstanceError(
                    f"The instance in {self.home.root} (pid {self.pid}) does not serve gRPC at "
                    f"{address}: {last}. What its proxies logged is in {self.home.logs}."
                )
                return

    def end(self, timeout_s: float = 10.0) -> None:
        """Ask the instance to end in good order, and wait for it; kill it after `timeout_s`."""
        _end_pidfd(self._pidfd, self.pid, timeout_s)
        self._reap()
        self.release()

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the supervisor has ended; False: it has not within `timeout_s`."""
        gone = _readable(self._pidfd, timeout_s)
        if gone:
            self._reap()
        return gone

    def _reap(self) -> None:
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass

    def abandon(self, timeout_s: float = 5.0) -> None:
        """Let go, and wait until a bound instance has ended, which it does without patience."""
        if self._owner_fd is not None and self._owner_fd >= 0:
            os.close(self._owner_fd)
            self._owner_fd = -1
            self.wait_gone(timeout_s)
        self.release()

    def release(self) -> None:
        """Let go: a bound instance ends, another one stays."""
        for name in ("_ready_fd", "_owner_fd", "_pidfd"):
            fd = getattr(self, name)
            if fd is not None and fd >= 0:
                os.close(fd)
                setattr(self, name, -1)


def _let_go(launched: Launch | None) -> None:
    if launched is not None:
        launched.release()


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


def launch(
    home: Home,
    setup: LaunchSetup,
    bound: bool,
    *,
    entry_points: EntryPoints = EntryPoints(),
    grace_s: float = 5.0,
) -> Launch:
    """Start the supervisor of an instance, and return at once.

    Args:
        home: state folder of the instance.
        setup: how it is to be.
        bound: True: the instance ends with this program, which shows on its standard error what
            the processes log. False: it stays, and what its supervisor has to say goes to
            `logs/instance.log`.
        entry_points: what to run as controller and proxy.
        grace_s: seconds that the instance has to end when it is asked to.

    Raises:
        InstanceError: the state folder cannot be written, or no process can be started.
    """
    if not sys.executable:
        raise InstanceError(
            "This program does not know its Python interpreter (sys.executable is empty), so it "
            "cannot start an instance. Start one with `remora start`."
        )
    # Before anything is opened.
    told = _told(setup)
    grpc = to_json(setup.grpc) if setup.grpc is not None else None
    log = _to_log(home) if not bound else []
    ready_read, ready_write = os.pipe()
    owner_read, owner_write = os.pipe() if bound else (None, None)
    # In memory: descriptions of services may be larger than what fits on a command line.
    grpc_fd = _in_memory(grpc) if grpc is not None else None
    options = {
        "home": str(home.root),
        "controller": entry_points.controller,
        "proxy": entry_points.proxy,
        "grace_s": grace_s,
        "owner_fd": owner_read,
        "ready_fd": ready_write,
        "grpc_fd": grpc_fd,
        **told,
    }
    given = [fd for fd in (ready_write, owner_read, grpc_fd) if fd is not None]
    try:
        pid = _spawn(home, _TOP[(setup.engine or LOCAL_ENGINE).engine], options, given, log)
    except InstanceError:
        for fd in (ready_read, owner_write):
            if fd is not None:
                os.close(fd)
        raise
    finally:
        for fd in given:
            os.close(fd)
    return Launch(home, pid, ready_read, owner_write)


def _told(setup: LaunchSetup) -> dict[str, Any]:
    """Tell the process at the top how the instance is to be: fields of its `InstanceOptions`."""
    engine = setup.engine or LOCAL_ENGINE
    options = {
        "http": _plain(setup.http or HTTPOptions()),
        "grpc_digest": digest(setup.grpc),
        "machine": _plain(setup.machine),
        "admin": _plain(setup.admin or ADMIN),
        "logging": _plain(setup.logging),
        "tracing": _plain(setup.tracing),
    }
    if engine.engine == "ray":
        options["address"] = engine.address
        options["proxy_location"] = engine.proxy_location
        options["node"] = _plain(engine.node)
    return options


def _plain(options: msgspec.Struct | None) -> Any:
    # A port may be a number of numpy's.
    return msgspec.to_builtins(options, enc_hook=plain)


def _spawn(
    home: Home, module: str, options: dict[str, Any], given: list[int], log: list[_OpenFile]
) -> int:
    """Start the process at the top of an instance; return its pid.

    Args:
        home: state folder.
        module: whose `main` it runs.
        options: for it.
        given: descriptors that it gets.
        log: where its output goes.

    Raises:
        InstanceError: it cannot be started.
    """
    # A descriptor onto itself: that is how one is handed on without a moment in which a child of
    # another thread could get it as well.
    hand_on = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in given]
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-c", _boot(module), json.dumps(options)],
            _environment(home),
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *log, *hand_on],
            setsid=True,
            setsigmask=(),
            setsigdef=_SIGNALS,
        )
    except OSError as error:
        raise InstanceError(
            f"Cannot start a process with {sys.executable}: {error.strerror}."
        ) from None


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("remora-grpc")
    os.write(fd, data)
    return fd


def _boot(module: str) -> str:
    """Return what the new interpreter runs: it must find the same package as this one."""
    root = str(Path(__file__).resolve().parents[2])
    # Libraries stay behind the standard library; a source tree goes in front of an installed copy.
    installed = root.endswith(("site-packages", "dist-packages"))
    place = f"append({root!r})" if installed else f"insert(0, {root!r})"
    return f"import sys; sys.path.{place}; from {module} import main; main()"


def _environment(home: Home) -> dict[str, str]:
    return {
        **os.environ,
        "REMORA_HOME": str(home.root),
        linux.TOKEN_VARIABLE: secrets.token_hex(16),
    }


def _to_log(home: Home) -> list[_OpenFile]:
    path = home.logs / LOG_NAME
    try:
        home.make()
        _put_aside(path, home)
        path.touch(mode=0o600)
    except OSError as error:
        raise folder_error(home, error) from None
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return [(os.POSIX_SPAWN_OPEN, fd, str(path), flags, 0o600) for fd in (1, 2)]


def _put_aside(log: Path, home: Home) -> None:
    # Not that of an instance that runs, which this start is about to be told of.
    if log.exists() and log.stat().st_size >= _FULL_LOG_BYTES and find_owner(home) is None:
        log.replace(log.with_name(f"{LOG_NAME}.1"))


def wait_while_ending(home: Home, timeout_s: float = 8.0) -> None:
    """Wait until an instance that ends has let go of its folder and port.

    Raises:
        InstanceError: it has not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while (owner := find_owner(home)) is not None and owner.ending:
        if time.monotonic() >= deadline:
            raise InstanceError(
                f"The instance in {home.root} (pid {owner.pid}) has been ending for {timeout_s:g} s "
                "and still holds the folder. Try again in a moment; `remora shutdown -y` ends it "
                "by force."
            )
        time.sleep(0.01)


def end(owner: Owner, timeout_s: float = 10.0) -> None:
    """End the instance of another program, for when its controller does not answer.

    Asks its supervisor to end everything in good order; kills it after `timeout_s`, and its
    processes with it.
    """
    try:
        pidfd = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return
    try:
        _end_pidfd(pidfd, owner.pid, timeout_s)
        linux.kill_members(owner.token, (), timeout_s=2.0)
    finally:
        os.close(pidfd)


def _end_pidfd(pidfd: int, pid: int, timeout_s: float) -> None:
    for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 2.0)):
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return
        if _readable(pidfd, wait_s):
            return
