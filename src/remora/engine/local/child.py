"""From a fresh fork of the template to a running entry point.

The order matters: first what makes sure that the process ends with its instance, then what keeps
it from holding what is not its own (a listening HTTP socket in a replica would keep the port
taken), then user-visible state, then the entry point.

Rules: everything here runs in the forked child, once. `become` never returns.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from remora.engine import linux
from remora.engine.base import ProcessContext
from remora.engine.boot import StartError, load, set_environment
from remora.engine.doors import listen_unix
from remora.engine.local import protocol
from remora.engine.local.pieces import hold_all
from remora.home import Home

#: A report must fit into one atomic write to the pipe that all children share.
_MAX_REASON_CHARS = 800
#: Exit status of a process that could not start; its report says why.
_EXIT_COULD_NOT_START = 70

#: Handlers that Python, or the template, or an imported library may have set.
_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Reporter:
    """The child's end of the pipe to the supervisor."""

    def __init__(self, fd: int, process_id: str) -> None:
        self.fd = fd
        self._process_id = process_id

    def report(self, state: str, pid: int, **more: Any) -> None:
        """Write one report. A supervisor that is gone reads none, and ends this process anyway."""
        message = {"state": state, "id": self._process_id, "pid": pid, **more}
        try:
            os.write(self.fd, protocol.encode(message))
        except OSError:
            pass

    def close(self) -> None:
        """Close the pipe: nothing more is reported."""
        os.close(self.fd)


def become(
    request: Mapping[str, Any],
    *,
    home: Home,
    supervisor_pid: int,
    middle_pid: int,
    reporter: Reporter,
    sockets: Mapping[str, socket.socket],
) -> NoReturn:
    """Turn this fork into the process that was asked for, run it, and end.

    Args:
        request: the fork message, see `protocol`.
        home: of the instance.
        supervisor_pid: who is to be the parent once the middle process is gone.
        middle_pid: the process between, which exits at once.
        reporter: says how far the start has come.
        sockets: all that the template holds; those that the request does not name are closed.
    """
    own: dict[str, socket.socket] = {}
    try:
        _tie_to(supervisor_pid, middle_pid)
        _reset_signals()
        own = _own_sockets(request, sockets)
    # Border: a process's main. Whatever escapes is a bug here, and must not reach the template's code.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(_EXIT_COULD_NOT_START)
    _run_and_end(request, home, reporter, own)


def spawn(
    request: Mapping[str, Any],
    *,
    home: Home,
    supervisor_pid: int,
    middle_pid: int,
    reporter: Reporter,
    sockets: Mapping[str, socket.socket],
) -> NoReturn:
    """Turn this fork into a process with an interpreter of its own; arguments as `become`.

    It stays the same child of the supervisor, with its session and its death signal; nothing of
    the template's memory is left.
    """
    try:
        _tie_to(supervisor_pid, middle_pid)
        _reset_signals()
        _own_sockets({}, sockets)
        # In memory: a request may be larger than what fits on a command line.
        fd = os.memfd_create("remora-request")
        os.write(fd, json.dumps({"request": request, "home": str(home.root)}).encode())
        for each in (fd, reporter.fd):
            os.set_inheritable(each, True)
        root = str(Path(__file__).resolve().parents[3])
        boot = (
            f"import sys; sys.path.append({root!r}); "
            f"from remora.engine.local.child import resume; resume({fd}, {reporter.fd})"
        )
        env = {**os.environ, **request.get("env", {})}
        python = str(request["python"])
        os.execve(python, [python, "-P", "-c", boot], env)
    except (OSError, ValueError) as error:
        reason = f"{request['python']} cannot be run: {error}"
        reporter.report("failed", os.getpid(), reason=reason[:_MAX_REASON_CHARS])
    except BaseException:  # noqa: BLE001 - border: as in `become`
        traceback.print_exc()
    finally:
        os._exit(_EXIT_COULD_NOT_START)


def resume(request_fd: int, report_fd: int) -> NoReturn:
    """Go on in the interpreter that `spawn` has started."""
    with os.fdopen(request_fd, "rb") as file:
        file.seek(0)
        message = json.load(file)
    os.set_inheritable(report_fd, False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    _reset_signals()
    request = message["request"]
    _run_and_end(request, Home(Path(message["home"])), Reporter(report_fd, request["id"]), {})


def _run_and_end(
    request: Mapping[str, Any], home: Home, reporter: Reporter, own: dict[str, socket.socket]
) -> NoReturn:
    status = _EXIT_COULD_NOT_START
    try:
        try:
            entry = _load(request)
            context = _context(request, home, own)
        except StartError as error:
            reporter.report("failed", os.getpid(), reason=str(error)[:_MAX_REASON_CHARS])
        else:
            reporter.report("up", os.getpid(), address=context.address)
            reporter.close()
            status = _run(entry, context)
    # Border: a process's main. Whatever escapes is a bug here, and must not reach the template's code.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _tie_to(supervisor_pid: int, middle_pid: int) -> None:
    os.setsid()
    # The middle process exits right after its fork; microseconds.
    while (parent := os.getppid()) == middle_pid:
        time.sleep(0.0002)
    if parent == supervisor_pid:
        linux.die_with_parent()
        # It may have died between the two lines, and then the kernel tells nobody.
        parent = os.getppid()
    if parent != supervisor_pid:
        os._exit(_EXIT_COULD_NOT_START)


def _reset_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _own_sockets(
    request: Mapping[str, Any], sockets: Mapping[str, socket.socket]
) -> dict[str, socket.socket]:
    wanted = request.get("sockets", ())
    for name, sock in sockets.items():
        if name not in wanted:
            sock.close()
    return {name: sockets[name] for name in wanted}


def _load(request: Mapping[str, Any]) -> Callable[[ProcessContext], None]:
    linux.set_title(str(request["title"]))
    if missing := hold_all(request.get("pieces", ())):
        raise StartError(f"{missing} is part of its environment and was removed meanwhile")
    set_environment(request.get("env", {}))
    # What was the template's main module must not look like this process's own: pickle and
    # multiprocessing ask `__main__` for names and for the file to run.
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [str(request["title"])]
    gc.enable()
    return load(str(request["entrypoint"]))


def _context(
    request: Mapping[str, Any], home: Home, own: dict[str, socket.socket]
) -> ProcessContext:
    address = str(request.get("address", ""))
    if path := request.get("listen"):
        try:
            own["wire"] = listen_unix(Path(path))
        except OSError as error:
            raise StartError(f"cannot listen on {path}: {error.strerror}") from None
        address = f"unix:{path}"
    return ProcessContext(
        process_id=str(request["id"]),
        home=home,
        args=request.get("args", {}),
        sockets=own,
        address=address,
        sys_path=tuple(request.get("sys_path", ())),
        cwd=str(request.get("cwd", "")),
    )


def _run(entry: Callable[[ProcessContext], None], context: ProcessContext) -> int:
    try:
        entry(context)
        return 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return int(error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)  # noqa: T201  # what Python itself does with it
        return 1
    # Border: a process's main.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    finally:
        # `os._exit` follows: it skips the template's frames below, and these with them.
        atexit._run_exitfuncs()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
