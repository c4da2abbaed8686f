"""What engines without processes of their own share: a store and a stream of events, in memory.

Nodes and the store belong to the engine, not to its connection: a second controller that
connects finds what the first one left, as with a real engine.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable

from remora.engine.base import (
    Engine,
    EngineEvent,
    Node,
    NodeDraining,
    NodeJoined,
    ProcessStarted,
    SystemProcess,
)
from remora.errors import EngineError


class InMemoryEngine(Engine):
    """An engine that keeps everything in this process. One event loop."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        self.store: dict[str, bytes] = {}
        self._events: asyncio.Queue[EngineEvent | None] | None = None

    @abstractmethod
    def running(self) -> list[ProcessStarted]:
        """What is alive, as it was reported."""

    @abstractmethod
    def own_processes(self) -> list[SystemProcess]:
        """What there is beside what was started."""

    async def system_processes(self) -> list[SystemProcess]:
        """What there is beside what was started, by name."""
        # As over a connection: what was reported before this answer is read before it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return self.own_processes()

    async def connect(self) -> None:
        """Begin a new stream of events; one that an earlier controller reads ends."""
        self.end_events()
        self._events = asyncio.Queue()
        for node in self.nodes.values():
            self.tell(NodeJoined(node))
            if node.draining:
                self.tell(NodeDraining(node.node_id))
        for started in self.running():
            self.tell(started)

    async def events(self) -> AsyncIterator[EngineEvent]:
        """Everything that happens, from `connect` on."""
        queue = self._events
        if queue is None:
            raise EngineError("connect first")
        while (event := await queue.get()) is not None:
            yield event

    def tell(self, event: EngineEvent) -> None:
        """Report an event to whoever reads them."""
        if self._events is not None:
            self._events.put_nowait(event)

    def end_events(self) -> None:
        """End the stream of events that is being read."""
        if self._events is not None:
            self._events.put_nowait(None)
            self._events = None

    async def get(self, key: str) -> bytes | None:
        """Read a value."""
        return self.store.get(key)

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        self.store[key] = value

    async def delete(self, key: str) -> None:
        """Forget a key."""
        self.store.pop(key, None)

    async def keys(self, prefix: str) -> list[str]:
        """List keys."""
        return sorted(key for key in self.store if key.startswith(prefix))

    async def close(self) -> None:
        """Let go; processes stay."""
        self.end_events()
