"""How the agent of a node leaves it, and its proxies with it, when nobody needs them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from remora.engine import linux
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.holders import Holders
from remora.engine.ray.relay import Relay
from remora.engine.ray.setup import NodeRecord
from remora.engine.ray.staffing import IDLE, Busy
from remora.types import Seconds
from remora.wire.codec import pack

#: An answer is written in the same turn of the loop.
_LAST_WORD_S: Seconds = 0.05


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
        # Each holder is asked one thing at a time.
        self._asking = asyncio.Lock()

    async def busy(self, _body: bytes) -> bytes:
        """Say who needs this agent and the proxies."""
        async with self._asking:
            return pack(await self._look())

    async def depart(self, _body: bytes) -> bytes:
        """Leave, with the proxies, unless somebody needs them: says who."""
        async with self._asking:
            busy = await self._look()
            if busy != IDLE:
                return pack(busy)
            # From here on nobody begins to rely on it.
            await asyncio.to_thread(self._cluster.delete, NodeRecord.key(self._record.node_id))
            busy = Busy(0, self._num_callers())
            if busy != IDLE:
                await asyncio.to_thread(self._record.save, self._cluster)
                return pack(busy)
        self._is_leaving = True
        holders = self._holders.pids()
        self._close()
        for pid in holders:
            linux.send_signal(pid, signal.SIGTERM)
        # After the answer has left.
        asyncio.get_running_loop().call_later(_LAST_WORD_S, self.over.set)
        return pack(IDLE)

    async def tell(self, record: NodeRecord) -> None:
        """Leave another record of this agent, unless it is on its way out."""
        async with self._asking:
            if not self.over.is_set() and not self._is_leaving:
                self._record = record
                await asyncio.to_thread(record.save, self._cluster)

    async def _look(self) -> Busy:
        ongoing = await asyncio.to_thread(self._holders.num_ongoing)
        return Busy(ongoing, self._num_callers())

    def _num_callers(self) -> int:
        return self._relay.num_callers(self._holders.pids())
