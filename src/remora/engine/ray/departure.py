"""How the agent of a node leaves it, and its proxies with it, when nobody needs them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any

from remora.engine import linux
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.holders import Holders
from remora.engine.ray.relay import Relay
from remora.engine.ray.setup import NodeRecord
from remora.engine.ray.staffing import IDLE, Busy
from remora.errors import EngineError
from remora.types import Seconds
from remora.wire.codec import pack

_log = logging.getLogger("remora.agent")
#: An answer is written in the same turn of the loop.
_LAST_WORD_S: Seconds = 0.05
#: A record that could not be written is written again after this long.
_TRY_AGAIN_S: Seconds = 1.0


class Departure:
    """Says who needs this agent, and ends it when it is asked to and nobody does.

    Attributes:
        over: set when it is to end.
    """

    def __init__(
        self,
        cluster: Cluster,
        record: NodeRecord,
        holders: Holders,
        relay: Relay,
        close: Callable[[], None],
    ) -> None:
        """Make it.

        Args:
            cluster: of the instance.
            record: of this agent.
            holders: who holds on to this agent.
            relay: of the connections to the controller.
            close: has nobody come in any more, neither there nor at the front doors.
        """
        self.over = asyncio.Event()
        self._cluster = cluster
        self._record = record
        self._holders = holders
        self._relay = relay
        self._close = close
        self._is_leaving = False
        # Each holder is asked one thing at a time. Whoever holds it hands it on to a task.
        self._asking = asyncio.Lock()

    async def busy(self, _body: bytes) -> bytes:
        """Say who needs this agent and the proxies."""
        return pack(await self._alone(self._look))

    async def depart(self, _body: bytes) -> bytes:
        """Leave, with the proxies, unless somebody needs them: says who.

        An agent whose asker gives up before it has agreed stays.
        """
        given_up = asyncio.Event()
        try:
            return pack(await self._alone(partial(self._depart, given_up)))
        except asyncio.CancelledError:
            given_up.set()
            raise

    async def _alone(self, work: Callable[[], Coroutine[Any, Any, Busy]]) -> Busy:
        """Do one thing at a time, and all of it: a thread goes on when nobody waits for it any more."""
        await self._asking.acquire()
        task = asyncio.ensure_future(work())
        task.add_done_callback(lambda _: self._asking.release())
        return await asyncio.shield(task)

    async def _depart(self, given_up: asyncio.Event) -> Busy:
        busy = await self._look()
        if busy != IDLE or given_up.is_set():
            return busy
        known = self._holders.pids()
        try:
            # From here on nobody begins to rely on it.
            await asyncio.to_thread(self._cluster.delete, NodeRecord.key(self._record.node_id))
            busy = await self._look()
        # Border: whatever went wrong, the record may be gone, and this agent lives.
        except Exception:
            await self._save()
            raise
        if self._holders.pids() - known:
            # Who has only just come may be about to say what for.
            busy = Busy(max(1, busy.num_ongoing), busy.num_callers)
        if busy != IDLE or given_up.is_set():
            await self._save()
            return busy
        self._end(known)
        return IDLE

    async def _save(self) -> None:
        """Write the record, now or later: without it this agent is there for nobody."""
        while True:
            try:
                await asyncio.to_thread(self._record.save, self._cluster)
                return
            except EngineError as error:
                _log.warning("This agent is here, and cannot say so yet: %s", error)
                await asyncio.sleep(_TRY_AGAIN_S)

    def _end(self, holders: Collection[int]) -> None:
        self._is_leaving = True
        try:
            self._close()
        finally:
            for pid in holders:
                linux.send_signal(pid, signal.SIGTERM)
            # After the answer has left.
            asyncio.get_running_loop().call_later(_LAST_WORD_S, self.over.set)

    async def tell(self, record: NodeRecord) -> None:
        """Leave another record of this agent, unless it is on its way out."""
        async with self._asking:
            if not self.over.is_set() and not self._is_leaving:
                self._record = record
                await self._save()

    async def _look(self) -> Busy:
        ongoing = await asyncio.to_thread(self._holders.num_ongoing)
        return Busy(ongoing, self._num_callers())

    def _num_callers(self) -> int:
        return self._relay.num_callers(self._holders.pids())
