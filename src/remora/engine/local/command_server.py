"""Where the controller's commands come in and its events go out.

Rules: knows sockets and messages; what a command does to processes is the table's.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from remora.engine.local.loop import Loop
from remora.engine.local.processes import Order, Process, ProcessTable, Stage
from remora.engine.local.protocol import Message, Peer


class CommandServer:
    """Answers on the supervisor's socket.

    Args of the constructor that are functions: `do` carries out orders of the table, `system`
    lists the instance's own processes, `shutdown` begins its end, `log` tells its owner.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        table: ProcessTable,
        *,
        socket_folder: Path,
        do: Callable[[list[Order]], None],
        system: Callable[[], list[Message]],
        shutdown: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._table = table
        self._folder = socket_folder
        self._do = do
        self._system = system
        self._shutdown = shutdown
        self._log = log
        self._subscribers: list[Peer] = []
        self._num_sockets = 0

    def open(self) -> None:
        """Take connections."""
        self._listener.setblocking(False)
        self._loop.on_forget = self._on_forget
        self._loop.watch(self._listener, self._on_accept)

    def publish(self, event: Message) -> None:
        """Tell every controller that is connected; it is one, or for a moment two."""
        for peer in list(self._subscribers):
            self._loop.tell(peer, event)

    def _on_accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self._loop.add_peer(sock, self._obey, self._on_junk)

    def _on_junk(self, error: Exception) -> None:
        self._log(f"closed a connection that sent no command: {error!r}")

    def _on_forget(self, peer: Peer) -> None:
        if peer in self._subscribers:
            self._subscribers.remove(peer)

    def _obey(self, peer: Peer, message: Message) -> None:
        now = time.monotonic()
        match message["op"]:
            case "connect":
                self._subscribe(peer)
            case "start":
                self._do(self._table.add(self._request(message)))
            case "stop":
                self._do(self._table.stop(message["id"], float(message["timeout_s"]), now))
            case "kill":
                self._do(self._table.kill(message["id"], now))
            case "processes":
                self._loop.tell(peer, {"reply": message["seq"], "processes": self._system()})
            case "shutdown":
                self._shutdown()
            case unknown:
                raise ValueError(f"unknown operation {unknown!r}")

    def _subscribe(self, peer: Peer) -> None:
        self._subscribers.append(peer)
        self._loop.tell(peer, {"event": "joined"})
        for process in self._table.all():
            if process.stage is Stage.UP and not process.system:
                self._loop.tell(peer, started_event(process))

    def _request(self, message: Message) -> Message:
        self._num_sockets += 1
        return {
            "op": "fork",
            "id": str(message["id"]),
            "entrypoint": str(message["entrypoint"]),
            "title": str(message["title"]),
            "args": dict(message.get("args", {})),
            "env": {str(key): str(value) for key, value in dict(message.get("env", {})).items()},
            "preload": [str(name) for name in message.get("preload", ())],
            "python": str(message.get("python", "")),
            "sys_path": [str(path) for path in message.get("sys_path", ())],
            "cwd": str(message.get("cwd", "")),
            "pieces": [str(path) for path in message.get("pieces", ())],
            "shared": message.get("shared") or None,
            # Numbered: an id can be longer than the path of a socket may be.
            "listen": str(self._folder / f"r{self._num_sockets}.sock"),
        }


def started_event(process: Process) -> Message:
    """Say that a process takes connections. Pure."""
    return {
        "event": "started",
        "id": process.process_id,
        "address": process.address,
        "pid": process.pid,
    }


def exited_event(process: Process, reason: str, expected: bool) -> Message:
    """Say that a process is gone. Pure."""
    return {
        "event": "exited",
        "id": process.process_id,
        "reason": reason,
        "expected": expected,
    }
