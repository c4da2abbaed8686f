"""Accepts clients on a socket that several proxies share, so that each gets its part of them.

`core.accepting` decides whose turn it is, from the numbers of open connections that the proxies
write into a small file which all of them have mapped.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remora.core.request.accepting import Turns
from remora.types import Seconds

_log = logging.getLogger("remora.proxy")
_CELL = struct.Struct("=I")
#: How long a proxy lets others go first.
_YIELD_S: Seconds = 0.001
#: Until the next try when no connection can be opened (too many files).
_PAUSE_S: Seconds = 0.05
#: How long a client may still take to open TLS once nobody is accepted any more.
_GREETING_LIMIT_S: Seconds = 2.0
#: Connections taken in one turn of the loop.
_PER_TURN = 64


class Tally:
    """The numbers of open connections of all proxies; each writes its own cell alone."""

    def __init__(self, cells: mmap.mmap | bytearray, index: int, number: int) -> None:
        """Look at the cells of `number` proxies as the one with this `index`, from 0."""
        self._cells = cells
        self._at = index * _CELL.size
        self._others = [i * _CELL.size for i in range(number) if i != index]
        self.write(0)

    @classmethod
    def in_file(cls, path: Path, index: int, number: int) -> Tally:
        """Share the cells through a file, which is made by whoever comes first."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = max(number, index + 1) * _CELL.size
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
            return cls(mmap.mmap(fd, size), index, number)
        finally:
            os.close(fd)

    def write(self, count: int) -> None:
        """Tell the others how many connections this proxy has."""
        _CELL.pack_into(self._cells, self._at, count)

    def others(self) -> list[int]:
        """How many each of the others has."""
        cells = self._cells
        return [_CELL.unpack_from(cells, at)[0] for at in self._others]


class Connections(set[Any]):
    """The connections of a proxy; whoever leaves is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.on_left: Callable[[], object] = bool

    def discard(self, connection: object) -> None:
        """Forget one that is closed."""
        super().discard(connection)
        self.on_left()


class Acceptor:
    """Takes connections from one listening socket. Closed and awaited as an asyncio server is."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        tally: Tally,
        num_open: Callable[[], int],
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        """Make an acceptor on the running loop; `start` begins.

        Args:
            sock: bound and listening.
            make: makes the protocol of a connection.
            tally: what the proxies know of each other.
            num_open: connections of this proxy.
            tls: what the next connection gets for HTTPS; None: plain.
        """
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._make = make
        self._tally = tally
        self._num_open = num_open
        self._tls = tls
        self._turns = Turns()
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to accept."""
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock.fileno(), self._on_ready)

    def close(self) -> None:
        """Accept no more; what waits in the socket is for the other proxies, or a successor."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())
            if self._timer is not None:
                self._timer.cancel()

    async def wait_closed(self) -> None:
        """Wait for connections that are being opened; not for clients that never greet."""
        if self._opening:
            _, silent = await asyncio.wait(self._opening, timeout=_GREETING_LIMIT_S)
            for task in silent:
                task.cancel()
            if silent:
                await asyncio.wait(silent)

    def tell(self) -> int:
        """Write down how many connections there are; returns that number."""
        count = self._num_open() + len(self._opening)
        self._tally.write(count)
        return count

    def _on_ready(self) -> None:
        for _ in range(_PER_TURN):
            if not self._turns.may_accept(self.tell(), self._tally.others()):
                self._rest(_YIELD_S)
                return
            try:
                client, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # It has left already.
            except OSError as error:
                _log.warning("No connection can be accepted for now: %s", error)
                self._rest(_PAUSE_S)
                return
            self._open(client)

    def _open(self, client: socket.socket) -> None:
        client.setblocking(False)
        if client.family in (socket.AF_INET, socket.AF_INET6):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._connect(client))
        self._opening.add(task)
        task.add_done_callback(self._on_opened)

    def _on_opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self.tell()

    async def _connect(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, client, ssl=self._tls())
        except (OSError, asyncio.CancelledError) as error:
            # It left before it was greeted, or has spoken no TLS.
            client.close()
            if isinstance(error, asyncio.CancelledError):
                raise

    def _rest(self, seconds: Seconds) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if not self._closed:
            self._turns.resume(self._tally.others())
            self._loop.add_reader(self._sock.fileno(), self._on_ready)
