"""The process at the top of an instance: parent of all others, and nothing else.

Theory of operation: it claims the state folder, opens the listening sockets and forks the template
at once; what the template is importing costs no time here. Then it waits in one loop for five
kinds of news and answers each at once: a child ended (SIGCHLD), a child of the template reports, a
controller sends a command, the program that owns this instance is gone, or a deadline has come.
What is to be done is decided in `processes`, `system_processes` and `shutdown_order`, which are
pure; here it is done.

The listening sockets stay open here, so a crashed proxy or controller refuses no connection: the
kernel queues them until its successor accepts.

Rules: one thread, no asyncio, the standard library and the lowest layer of the package only. This
process lives as long as the instance, and its memory counts in every idle application.
"""

from __future__ import annotations

import gc
import io
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remora.engine import linux, socket_folder
from remora.engine.boot import InstanceOptions, answer, close_strangers
from remora.engine.claim import Claim
from remora.engine.doors import address_of, http_url
from remora.engine.local.command_server import CommandServer, exited_event, started_event
from remora.engine.local.echo import Echo
from remora.engine.local.loop import Loop
from remora.engine.local.opening import open_instance
from remora.engine.local.processes import Fork, Gone, Kill, Order, ProcessTable, Terminate, Up
from remora.engine.local.protocol import Message
from remora.engine.local.shutdown_order import ShutdownOrder
from remora.engine.local.system_processes import PermanentProcesses, admin_request, system_requests
from remora.engine.local.templates import Owner, Templates
from remora.errors import InstanceError

#: From the death of the owning program until what still runs is killed. Everything is to be gone
#: two seconds after it.
OWNER_GRACE_S = 1.0


#: What is left to show has so long at the end.
_SHOW_REST_S = 0.5

#: Sockets that no other process gets.
_OWN = ("supervisor", "grpc")
#: Those of the REST API.
_ADMIN = ("admin", "admin_unix")


class Supervisor:
    """Holds the parts together, and does what they decide."""

    def __init__(
        self,
        options: InstanceOptions,
        claim: Claim,
        sockets: dict[str, socket.socket],
        token: str,
        grpc: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = options
        self._grpc = grpc
        self._claim = claim
        self._sockets = sockets
        self._token = token
        self._table = ProcessTable()
        self._permanent = PermanentProcesses()
        self._shutdown: ShutdownOrder | None = None
        self._loop = Loop()
        #: Of an instance that nobody looks at, the files are enough.
        self._echo: Echo | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._commands = CommandServer(
            self._loop,
            sockets["supervisor"],
            self._table,
            socket_folder=claim.home.sockets,
            do=self._do,
            system=self._system,
            shutdown=lambda: self._end(options.grace_s),
            log=log,
        )
        owner = Owner(
            do=self._do,
            publish=self._commands.publish,
            close_in_child=self._close_in_template,
            log=log,
        )
        inherited = {name: sock for name, sock in sockets.items() if name not in _OWN}
        self._templates = Templates(self._loop, claim.home, token, inherited, self._table, owner)

    # ------------------------------------------------------------------------------------ start

    def start(self) -> None:
        """Fork the template and ask it for the controller and the proxies."""
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._loop.watch(self._wake_read, self._on_signal)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            # The handler does nothing; its number arrives on the wake-up socket.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._templates.start()
        self._commands.open()
        if self._options.owner_fd is not None:
            self._echo = Echo(self._claim.home.logs, 2)
            if self._echo.fd is not None:
                self._loop.watch(self._echo.fd, self._echo.copy)
            self._loop.watch(self._options.owner_fd, self._on_owner)
        for request in system_requests(
            self._options,
            self._grpc,
            http_url=http_url(self._sockets.get("http"), self._options.http),
            grpc_address=address_of(self._sockets.get("grpc")),
            admin_url=http_url(self._sockets.get("admin"), {}),
            cores=len(os.sched_getaffinity(0)),
        ):
            self._keep(request)
        for name in _ADMIN:
            if name in self._sockets:
                self._loop.watch(self._sockets[name], self._on_admin)

    def _on_admin(self) -> None:
        """Somebody asks the REST API for the first time: until now it has cost nothing."""
        mine = [name for name in _ADMIN if name in self._sockets]
        for name in mine:
            self._loop.unwatch(self._sockets[name])
        if self._shutdown is not None:
            return
        options = {
            "http": dict(self._options.http),
            "grpc": self._grpc and {"port": self._grpc["port"]},
        }
        self._keep(admin_request(self._claim.home, self._options.admin, mine, options))

    def _keep(self, request: Message) -> None:
        """Start a process that is always there."""
        self._permanent.add(request)
        self._do(self._table.add(request, system=True))

    def _close_in_template(self) -> None:
        # The template lives on in this very frame: nothing here is ever finalised there, so a
        # descriptor that is closed now is not closed again under its next owner.
        self._loop.close_in_fork()
        if self._echo is not None:
            self._echo.close_in_fork()
        own = (self._sockets[name] for name in _OWN if name in self._sockets)
        for sock in (*own, self._wake_write, self._wake_read):
            sock.close()
        for fd in (*self._claim.fds, self._options.owner_fd):
            if fd is not None:
                os.close(fd)

    # ------------------------------------------------------------------------------------- loop

    def run(self) -> None:
        """Wait and act until everything has ended."""
        while self._shutdown is None or not self._shutdown.done(self._table):
            self._loop.run_once(self._wait_s())
            self._on_time(time.monotonic())

    def _wait_s(self) -> float | None:
        if self._shutdown is None:
            times = [self._templates.due_at(), self._permanent.due_at()]
        else:
            times = [self._shutdown.kill_at]
        times.append(self._table.next_deadline())
        if self._echo is not None and self._echo.due_in_s is not None:
            times.append(time.monotonic() + self._echo.due_in_s)
        first = min((t for t in times if t is not None), default=None)
        # Bounded: the kernel does not take a wait of weeks, and a caller may say "for ever".
        return None if first is None else min(3600.0, max(0.0, first - time.monotonic()))

    def _on_time(self, now: float) -> None:
        if self._echo is not None and self._echo.due_in_s is not None:
            self._echo.copy()
        if self._shutdown is not None:
            self._do(self._shutdown.step(self._table, now))
        else:
            self._templates.on_time(now)
            for request in self._permanent.take_due(now):
                self._do(self._table.add(request, system=True))
        self._do(self._table.overdue(now))

    def _on_signal(self) -> None:
        numbers = set(self._wake_read.recv(4096))
        if signal.SIGCHLD in numbers:
            self._reap()
        if numbers & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            # Asked a second time: no more patience.
            self._end(self._options.grace_s if self._shutdown is None else 0.0)

    def _on_owner(self) -> None:
        fd = self._options.owner_fd
        if fd is not None and not os.read(fd, 4096):
            self._loop.unwatch(fd)
            self._end(OWNER_GRACE_S, at_once=True)

    def _end(self, grace_s: float, *, at_once: bool = False) -> None:
        kill_at = time.monotonic() + grace_s
        if self._shutdown is None:
            self._shutdown = ShutdownOrder(kill_at, at_once)
            self._claim.write_ending()
        else:
            self._shutdown.hurry(kill_at, at_once)

    # -------------------------------------------------------------------------------- processes

    def _do(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Fork(process):
                    self._templates.fork(process)
                case Terminate(pid):
                    linux.send_signal(pid, signal.SIGTERM)
                case Kill(pid):
                    linux.kill_group(pid)
                case Up(process):
                    if not process.system:
                        self._commands.publish(started_event(process))
                case Gone():
                    self._on_gone(order)

    def _on_gone(self, gone: Gone) -> None:
        process = gone.process
        if path := process.request.get("listen"):
            Path(path).unlink(missing_ok=True)
        self._templates.gone(process)
        if process.request.get("shared") and self._shutdown is None:
            self._templates.end_unused(time.monotonic())
        if not process.system:
            self._commands.publish(exited_event(process, gone.reason, gone.expected))
        elif self._shutdown is None:
            delay_s = self._permanent.ended(process, time.monotonic())
            when = f"in {delay_s:g} s" if delay_s else "now"
            log(f"{process.process_id} (pid {process.pid}) ended: {gone.reason}; restarting {when}")

    def _reap(self) -> None:
        while pid := _has_ended(os.P_ALL, 0):
            # Read after its end was seen: all that a process reported was written before it.
            self._templates.read_reports()
            ended = {each for each in self._table.sessions() if _has_ended(os.P_PID, each)}
            if ended:
                # Before they are reaped: a dead leader keeps its number from being given away.
                for each in ended:
                    linux.kill_group(each)
                linux.kill_members("", ended, timeout_s=0.0)
            for each in ended:
                self._do(self._table.exited(*os.waitpid(each, 0)))
            if pid not in ended:
                # The template, a process between forks, an orphan that was adopted.
                os.waitpid(pid, 0)
                self._templates.reaped(pid)

    def _system(self) -> list[Message]:
        return [
            {"name": "supervisor", "pid": os.getpid(), "restarts": 0},
            *self._templates.processes(),
            *self._permanent.told(self._table, time.monotonic()),
        ]

    # -------------------------------------------------------------------------------------- end

    def finish(self) -> None:
        """Leave nothing behind: no process, no socket."""
        self._templates.kill()
        if stuck := linux.kill_members(self._token, self._table.sessions(), timeout_s=2.0):
            log(f"processes that cannot be killed: {stuck}")
        while _has_ended(os.P_ALL, 0):
            os.waitpid(-1, os.WNOHANG)
        if self._echo is not None:
            self._echo.finish(_SHOW_REST_S)
        for sock in self._sockets.values():
            sock.close()
        self._claim.leave()


def _has_ended(kind: int, pid: int) -> int:
    """Look at whether a child has ended, without reaping it; 0: none has."""
    try:
        ended = os.waitid(kind, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return ended.si_pid if ended else 0


def log(text: str) -> None:
    """Say something about the instance where its owner can see it; never wait for a reader."""
    if select.select([], [2], [], 0)[1]:
        try:
            os.write(2, f"remora supervisor: {text}\n".encode(errors="replace"))
        except OSError:
            pass


def main() -> None:
    """Run a supervisor with the options in the first argument."""
    options = InstanceOptions(**json.loads(sys.argv[1]))
    given = (options.owner_fd, options.ready_fd, options.grpc_fd)
    close_strangers(given)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Inherited by every process: what users print is seen when they print it.
        sys.stdout.reconfigure(line_buffering=True)
    token = os.environ[linux.TOKEN_VARIABLE]
    linux.adopt_orphans()
    linux.raise_fd_limit()
    try:
        opened = open_instance(options, token, log)
    except InstanceError as error:
        answer(options.ready_fd, {"error": str(error)})
        sys.exit(1)
    supervisor = Supervisor(options, opened.claim, opened.sockets, token, opened.grpc)
    answer(options.ready_fd, {"ready": opened.owner.http_url, "grpc": opened.owner.grpc_address})
    # The collector would write to pages that are shared with every process from here on.
    gc.freeze()
    supervisor.start()
    socket_folder.sweep()
    linux.set_title("remora: supervisor")
    try:
        supervisor.run()
    finally:
        supervisor.finish()
