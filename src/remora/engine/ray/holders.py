"""Those who hold on to the agent of a node: its proxies, its REST API, and whoever wants it to stay.

Concurrency: each is followed in a thread of its own; anybody may ask.
"""

from __future__ import annotations

import select
import socket
import struct
import threading

from remora.engine.ray.sockets import ANSWER, QUESTION
from remora.types import Seconds

#: They count in microseconds; one that does not answer is busy.
_ANSWER_LIMIT_S: Seconds = 1.0
#: As the kernel tells who is at the other end of a Unix socket: pid, user, group.
_PEER = struct.Struct("=iII")


def pid_of_peer(connection: socket.socket) -> int:
    """Tell the process at the other end of a Unix socket."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(found)[0])


class Holders:
    """The connections of those who hold on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: With the process at the other end.
        self._pids: dict[socket.socket, int] = {}

    def follow(self, connection: socket.socket) -> None:
        """Count somebody until the other side closes. Blocks for so long."""
        with self._lock:
            self._pids[connection] = pid_of_peer(connection)
        try:
            poll = select.poll()
            # Not what comes: that is an answer, for whoever has asked.
            poll.register(connection, select.POLLRDHUP)
            poll.poll()
        finally:
            with self._lock:
                del self._pids[connection]

    def pids(self) -> set[int]:
        """Their processes."""
        with self._lock:
            return set(self._pids.values())

    def num_ongoing(self) -> int:
        """Ask all of them how much they have under way. Blocks; one call at a time."""
        with self._lock:
            connections = list(self._pids)
        return sum(_ask(connection) for connection in connections)


def _ask(connection: socket.socket) -> int:
    connection.settimeout(_ANSWER_LIMIT_S)
    try:
        connection.sendall(QUESTION)
        answer = connection.recv(ANSWER.size, socket.MSG_WAITALL)
    except OSError:
        # It may be late: what it says then must not be taken for the next answer.
        _cut(connection)
        return 1
    return int(ANSWER.unpack(answer)[0]) if len(answer) == ANSWER.size else 0


def _cut(connection: socket.socket) -> None:
    """Have whoever is at the other end come again."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
