"""The process that has imported what others need, and is forked to make them.

Theory of operation: the supervisor forks this process and tells it on a socket pair what to fork.
A module of ours is imported before the first process that needs it is forked, so that the
controller runs while the front door's modules are still being imported here, and every later
process shares the memory of its imports. Each process is forked twice: the one between exits at
once, so that the new process becomes a child of the supervisor, which is the one that waits for
all of them.

When the socket pair closes, the supervisor is gone: everything that belongs to the instance is
killed, including what user code spawned, and then this process ends.

Rules: one thread, ever: a fork copies only the thread that forks, and locks that others hold stay
locked for good. So nothing that starts threads is imported here; `SAFE_PRELOADS` is a list of
what was checked.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from remora.engine import linux
from remora.engine.local import protocol
from remora.engine.local.child import Reporter, become, spawn
from remora.engine.local.threads import hold_threads, release_threads
from remora.home import Home
from remora.preloading import load

#: What processes may ask to have imported before they are forked: pure Python or single-threaded.
#: Not numpy or torch (thread pools), not grpc (threads and descriptors at import).
SAFE_PRELOADS = frozenset(
    {
        "cloudpickle",
        "fastapi",
        "fastapi.responses",
        "jinja2",
        "msgspec",
        "pydantic",
        "starlette",
        "starlette.applications",
        "starlette.requests",
        "starlette.responses",
        "starlette.websockets",
        "yaml",
    }
)

#: Imported while nothing is asked for, in this order. What a replica needs first.
_WARM_UP = ("remora.replica.main", "cloudpickle", "starlette.requests", "starlette.responses")


@dataclass
class Template:
    """The state of a template process.

    Attributes:
        channel: orders come in here; the supervisor's end of it closes with the supervisor.
        report_fd: the pipe on which children report.
        sockets: listening sockets to hand on, by name.
        sessions: living processes of earlier templates and of this one.
        shared: `{"names", "sys_path", "cwd", "env"}` of what is loaded before the first fork;
            None: this is the template of everything else.
    """

    home: Home
    token: str
    supervisor_pid: int
    channel: socket.socket
    report_fd: int
    sockets: Mapping[str, socket.socket]
    sessions: set[int]
    shared: Mapping[str, Any] | None = None
    #: What libraries are told of threads in children; None: nothing is loaded yet.
    _threads: Mapping[str, str | None] | None = field(default=None, init=False)

    def run(self) -> NoReturn:
        """Fork what is asked for until the supervisor is gone."""
        try:
            self._settle()
            self._serve()
        # Border: a process's main. The supervisor makes a new template.
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
        if self.shared is None:
            linux.kill_members(self.token, self.sessions)
        os._exit(0)

    def _settle(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        linux.set_title("remora: template")
        if self.shared is not None:
            # While it loads it hears of nothing.
            linux.die_with_parent()
        # No collection here or in a child before its own start: it would write to shared pages.
        gc.disable()

    def _serve(self) -> None:
        lines = protocol.LineBuffer()
        warm_up = list(_WARM_UP) if self.shared is None else []
        while True:
            if warm_up and not select.select([self.channel], [], [], 0)[0]:
                _import(warm_up.pop(0))
                continue
            data = self.channel.recv(65536)
            if not data:
                return
            for message in lines.feed(data):
                self._obey(message)

    def _obey(self, message: protocol.Message) -> None:
        if message["op"] == "fork":
            for name in _modules(message):
                _import(name)
            self._load(message)
            self._fork(message)
        elif message["op"] == "born":
            self.sessions.add(message["pid"])
        elif message["op"] == "gone":
            self.sessions.discard(message["pid"])

    def _load(self, request: protocol.Message) -> None:
        """Load what is to be shared, once; a failure is told, and ends this process."""
        if self.shared is None or self._threads is not None:
            return
        self._threads = hold_threads()
        os.environ.update(self.shared["env"])
        os.environ.update(dict.fromkeys(self._threads, "1"))
        sys.path[:0] = [path for path in self.shared["sys_path"] if path not in sys.path]
        try:
            if self.shared["cwd"]:
                os.chdir(self.shared["cwd"])
            load(self.shared["names"])
        # Border: the user's code.
        except BaseException as error:  # noqa: BLE001
            traceback.print_exc()
            text = "".join(traceback.format_exception_only(error)).strip()
            where = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip()
            reason = f"preload of {', '.join(self.shared['names'])} failed: {text}\n{where}"
            Reporter(self.report_fd, str(request["id"])).report("failed", 0, reason=reason[:800])
            os._exit(1)
        _warn_of_threads(f"preloading {', '.join(self.shared['names'])}")

    def _fork(self, request: protocol.Message) -> None:
        reporter = Reporter(self.report_fd, str(request["id"]))
        # Objects that exist by now are never looked at by a child's collector.
        gc.freeze()
        try:
            middle = os.fork()
        except OSError as error:
            reporter.report("failed", 0, reason=f"cannot fork: {error.strerror}")
            return
        if middle == 0:
            self._be_the_middle(request, reporter)
        os.waitpid(middle, 0)

    def _be_the_middle(self, request: protocol.Message, reporter: Reporter) -> NoReturn:
        middle_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            reporter.report("failed", 0, reason=f"cannot fork: {error.strerror}")
            os._exit(0)
        if pid:
            # Before the exit that lets the child go on: the supervisor knows a pid before it
            # can hear of its end.
            reporter.report("forked", pid)
            os._exit(0)
        self.channel.close()
        if self._threads is not None:
            release_threads(self._threads, request["env"])
        start = spawn if request.get("python") else become
        start(
            request,
            home=self.home,
            supervisor_pid=self.supervisor_pid,
            middle_pid=middle_pid,
            reporter=reporter,
            sockets=self.sockets,
        )


def _modules(request: Mapping[str, Any]) -> Collection[str]:
    """Choose what to import here before the fork: our own modules and what is known to be safe."""
    module = str(request["entrypoint"]).partition(":")[0]
    ours = [module] if module.startswith("remora.") else []
    return [*ours, *(name for name in request.get("preload", ()) if name in SAFE_PRELOADS)]


def _import(name: str) -> None:
    """Import a module; a failure is the child's to report, which needs it and tries again."""
    if name in sys.modules:
        return
    try:
        importlib.import_module(name)
    # Border: imports run code that is not ours.
    except Exception:  # noqa: BLE001
        return
    _warn_of_threads(f"importing {name}")


def _warn_of_threads(what: str) -> None:
    if (count := len(list(Path("/proc/self/task").iterdir()))) > 1:
        print(  # noqa: T201  # there is no logging before the entry point sets it up
            f"remora template: {what} left {count} threads, which forked processes do not have; "
            "they can hang where they wait for one.",
            file=sys.stderr,
        )
