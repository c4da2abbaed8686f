"""What waits for the controller's next tick: facts, and what people ask for.

One request takes part in a tick, so that one that cannot be saved is refused alone and has changed
nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from remora.core import events as ev


@dataclass
class Item:
    """Something that waits."""

    event: ev.AnyEvent
    #: Where the requester waits; None: a fact that nobody waits for.
    answer: asyncio.Future[int] | None = None

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for the answer, and has none yet."""
        return self.answer is not None and not self.answer.done()

    def accept(self, release: int) -> None:
        """Answer with the number of the latest release, unless it was answered or given up."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(release)

    def refuse(self, error: Exception) -> None:
        """Answer with why it may not be, unless it was answered or given up."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class Inbox:
    """Keeps what happens in its order.

    Attributes:
        news: set when something has come since it was cleared.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []
        self.news = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Nothing waits."""
        return not self._items

    def post(self, event: ev.AnyEvent) -> None:
        """Add a fact."""
        self._items.append(Item(event))
        self.news.set()

    def put_first(self, event: ev.AnyEvent) -> None:
        """Add a fact that comes before all that waits."""
        self._items.insert(0, Item(event))

    async def ask(self, request: ev.Request) -> int:
        """Add a request, and wait for its answer.

        Raises:
            RemoraError: it is refused.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._items.append(Item(request, answer))
        self.news.set()
        return await answer

    def move_facts_first(self) -> None:
        """Let facts come before what was asked meanwhile."""
        self._items.sort(key=lambda item: item.answer is not None)

    def take(self, last_event_id: int) -> tuple[list[ev.AnyEvent], Item | None]:
        """Take facts up to the first request that may be accepted, and that request.

        Args:
            last_event_id: the ids of what is taken follow it.
        """
        facts: list[ev.AnyEvent] = []
        number = last_event_id
        while self._items:
            item = self._items.pop(0)
            number += 1
            item.event = msgspec.structs.replace(item.event, event_id=number)
            if item.answer is None:
                facts.append(item.event)
            elif not item.answer.cancelled():
                return facts, item
        return facts, None

    def refuse_all(self, error: Exception) -> None:
        """Nothing of what waits will be looked at."""
        for item in self._items:
            item.refuse(error)
        self._items.clear()
