"""Carries bytes between processes of a node and the controller, wherever that runs.

While none runs they wait, as they would at a socket that the embedded engine holds.

Concurrency: one event loop; what blocks on Ray's head runs in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections.abc import Collection
from pathlib import Path

from remora.engine.ray.cluster import Cluster
from remora.engine.ray.holders import pid_of_peer
from remora.engine.ray.setup import CONTROLLER_ADDRESS
from remora.errors import EngineError
from remora.transport import address as addresses
from remora.transport import tcp
from remora.transport.channel import CONNECT_LIMIT_S
from remora.transport.membership import mine
from remora.transport.node_tls import explain
from remora.transport.proving import UnprovedError, prove
from remora.transport.strangers import tell_not_taken
from remora.types import Seconds

_log = logging.getLogger("remora.agent")
_CHUNK_BYTES = 256 * 1024
#: Ray's head is asked no more often, however many wait.
_BETWEEN_LOOKS_S: Seconds = 0.03
#: At somebody who has the port of a controller that is gone.
_BETWEEN_KNOCKS_S: Seconds = 1.0
#: What Ray calls a worker that waits for its next task.
_IDLE_TITLE = b"ray::IDLE"

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """What a node's processes reach the controller through."""

    def __init__(self, cluster: Cluster) -> None:
        """Make it.

        Args:
            cluster: of the instance; says where its controller is.
        """
        self._cluster = cluster
        self._address = ""
        #: The look-up that all who wait have in common.
        self._looking: asyncio.Task[None] | None = None
        self._looked_at: Seconds = float("-inf")
        #: An address where the controller was not, and until when nobody asks there again.
        self._stranger: tuple[str, Seconds] = ("", float("-inf"))
        #: The processes at the other ends of the connections that are carried.
        self._callers: list[int] = []

    def num_callers(self, but: Collection[int]) -> int:
        """Count the connections of all processes but these, and but workers of Ray that do nothing.

        Ray keeps a worker for later tasks, and it its connection. It finds its way back (`near`).
        """
        return sum(pid not in but and not is_idle_worker(pid) for pid in self._callers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side closes."""
        caller = pid_of_peer(writer.get_extra_info("socket"))
        self._callers.append(caller)
        try:
            await self._serve(reader, writer)
        finally:
            self._callers.remove(caller)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        early = bytearray()
        try:
            opened = await self._reach_for(reader, early)
        except BaseException:
            # Who waits must not wait for somebody who has gone.
            writer.close()
            raise
        if opened is None:
            writer.close()
            return
        there_reader, there_writer = opened
        there_writer.write(bytes(early))
        ways = [_carry(reader, there_writer), _carry(there_reader, writer)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            writer.close()
            there_writer.close()

    async def _reach_for(self, reader: asyncio.StreamReader, early: bytearray) -> _Streams | None:
        """Reach the controller; None: who waited for it has left. What that sent goes to `early`."""
        reached = asyncio.ensure_future(self._reach())
        left = asyncio.ensure_future(_wait_for_end(reader, early))
        try:
            await asyncio.wait((reached, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if not reached.done():
                reached.cancel()
        # A stream has one reader at a time.
        await asyncio.wait((left,))
        return reached.result() if reached.done() and not reached.cancelled() else None

    async def _reach(self) -> _Streams:
        while True:
            try:
                if self._address and not self._is_stranger():
                    return await _open(addresses.parse(self._address, mine().node_id))
            except ssl.SSLError as error:
                tell_not_taken(self._address, explain(error))
                self._stranger = (self._address, _now() + _BETWEEN_KNOCKS_S)
            except UnprovedError as error:
                tell_not_taken(self._address, str(error))
                self._stranger = (self._address, _now() + _BETWEEN_KNOCKS_S)
            except OSError as error:
                if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                    _log.debug("The controller is not reached: %s", error)
            if self._looking is None:
                self._looking = asyncio.ensure_future(self._look_up())
            # Who leaves does not end it for the others.
            await asyncio.shield(self._looking)

    def _is_stranger(self) -> bool:
        """Somebody else has the port that the controller had, and has been knocked at just now."""
        address, until = self._stranger
        return address == self._address and _now() < until

    async def _look_up(self) -> None:
        """Read where the controller is."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, self._looked_at + _BETWEEN_LOOKS_S - loop.time()))
            found = await asyncio.to_thread(self._cluster.get, CONTROLLER_ADDRESS)
            self._address = found.decode() if found else ""
        except EngineError as error:
            _log.warning("The controller's address is not known: %s", error)
        finally:
            self._looked_at = loop.time()
            self._looking = None


def _now() -> Seconds:
    return asyncio.get_running_loop().time()


def is_idle_worker(pid: int) -> bool:
    """Tell a process that Ray keeps for the next task from others, by its title."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_IDLE_TITLE)
    except OSError:
        return False


async def _wait_for_end(reader: asyncio.StreamReader, early: bytearray) -> None:
    """Return when the other side closes; keep what it sends, as far as a connection would."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            early += data
            if len(early) >= _CHUNK_BYTES:
                await asyncio.Event().wait()
    except OSError:
        pass


async def _open(where: addresses.Address) -> _Streams:
    if where.path is not None:
        return await asyncio.open_unix_connection(where.path)
    tls = mine().tls
    async with asyncio.timeout(CONNECT_LIMIT_S):
        if tls is None:
            reader, writer = await asyncio.open_connection(where.host, where.port)
        else:
            reader, writer = await asyncio.open_connection(
                where.host, where.port, ssl=tls.client(), server_hostname=where.host
            )
        try:
            tcp.notice_loss(writer.get_extra_info("socket"))
            await prove(reader, writer, mine().token)
        except BaseException:
            writer.transport.abort()
            raise
    return reader, writer


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
