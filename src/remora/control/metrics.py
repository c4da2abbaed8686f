"""Asks every process of the instance what it counts, when somebody wants to know.

Replicas are asked on the controller's own connection to them. Proxies, and programs that call,
follow: each call goes to them on a stream, and the answer comes by itself.

Rules: who does not answer in time is left out, and counted.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

from remora.errors import RemoraError
from remora.observe.metrics import disagreeing, gauge, merged
from remora.types import Seconds
from remora.wire.control import Subscription
from remora.wire.metrics import Family, MetricsAnswer, MetricsCall, MetricsReport

_log = logging.getLogger("remora.controller")

#: Counters are read in microseconds; who needs longer has a blocked loop.
ANSWER_LIMIT_S: Seconds = 1.0
#: Asking everybody may take this share of the controller's time, however often readers come.
_BUSY_SHARE = 0.1

#: How long what a replica had counted is told after its end: longer than readers stay away.
KEPT_S: Seconds = 300.0
MAX_KEPT_ROWS = 20_000
#: Warnings about names, in the life of a controller.
MAX_SAID = 100

#: Asks one replica.
AskReplica = Callable[[], Awaitable[MetricsReport]]


class _Follower:
    """A process that answers calls on a stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: asyncio.Queue[MetricsCall] = asyncio.Queue()


class MetricsCollector:
    """Brings together what all processes count."""

    def __init__(
        self, replicas: Callable[[], Iterable[AskReplica]], own: Callable[[], list[Family]]
    ) -> None:
        """Make a collector.

        Args:
            replicas: how to ask each replica that runs now.
            own: what the controller knows itself.
        """
        self._replicas = replicas
        self._own = own
        self._followers: set[_Follower] = set()
        self._numbers = itertools.count(1)
        self._awaited: dict[int, asyncio.Future[MetricsAnswer]] = {}
        self._round: asyncio.Task[dict[str | None, list[Family]]] | None = None
        self._not_before: Seconds = 0.0
        #: What replicas that have ended had counted, and until when it is told.
        self._kept: deque[tuple[Seconds, tuple[Family, ...]]] = deque()
        #: Names of which was said that they mean two things.
        self._said: set[str] = set()

    async def follow(self, subscription: Subscription) -> AsyncGenerator[MetricsCall, None]:
        """Stream calls to a process until it closes the stream."""
        follower = _Follower(subscription.subscriber)
        self._followers.add(follower)
        try:
            while True:
                yield await follower.calls.get()
        finally:
            self._followers.discard(follower)

    def on_answer(self, answer: MetricsAnswer) -> None:
        """Take what a process counts; too late is nothing."""
        awaited = self._awaited.pop(answer.number, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(answer)

    def keep(self, last: MetricsReport) -> None:
        """Tell for a while what a replica had counted when it ended.

        Whoever reads now and then would not see what came after the last time.
        """
        if not last.families:
            return
        now = asyncio.get_running_loop().time()
        self._kept.append((now + KEPT_S, last.families))
        rows = [sum(len(each.rows) for each in families) for _, families in self._kept]
        while sum(rows) > MAX_KEPT_ROWS:
            del rows[0]
            self._kept.popleft()

    async def read(self, but: str = "") -> list[Family]:
        """Everything that anybody counts; readers that come together are answered together.

        Args:
            but: leave out what this follower counts, which adds its own.
        """
        loop = asyncio.get_running_loop()
        if self._round is None or (self._round.done() and loop.time() >= self._not_before):
            self._round = loop.create_task(self._ask_everybody())
        found = await asyncio.shield(self._round)
        return merged(
            family for name, families in found.items() if name != but for family in families
        )

    async def _ask_everybody(self) -> dict[str | None, list[Family]]:
        """The metrics of the followers by their names, and of all others together (None)."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        followers = list(self._followers)
        asked = [self._of_replica(ask) for ask in self._replicas()]
        told, heard = await asyncio.gather(
            asyncio.gather(*asked), asyncio.gather(*(self._of_follower(each) for each in followers))
        )
        found: dict[str | None, list[Family]] = {}
        for follower, families in zip(followers, heard, strict=True):
            found.setdefault(follower.name, []).extend(families or ())
        silent = [*told, *heard].count(None)
        missing = gauge("serve_metrics_missing_processes", (), {(): silent})
        while self._kept and self._kept[0][0] < began:
            self._kept.popleft()
        rest = [family for families in told for family in families or ()]
        rest += [family for _, families in self._kept for family in families]
        found[None] = merged((*self._own(), missing, *rest))
        self._say_what_disagrees([*itertools.chain.from_iterable(found.values()), *rest])
        now = loop.time()
        self._not_before = now + (now - began) / _BUSY_SHARE
        return found

    def _say_what_disagrees(self, families: list[Family]) -> None:
        for name in sorted(disagreeing(families) - self._said):
            if len(self._said) < MAX_SAID:
                self._said.add(name)
                _log.warning(
                    "Metric %s of an application is left out: another one of that name, of Remora "
                    "or of another deployment, is of another kind. Give it another name.",
                    name,
                )

    async def _of_replica(self, ask: AskReplica) -> tuple[Family, ...] | None:
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return (await ask()).families
        except (RemoraError, TimeoutError) as error:
            _log.debug("A replica gave no metrics: %r", error)
            return None

    async def _of_follower(self, follower: _Follower) -> tuple[Family, ...] | None:
        number = next(self._numbers)
        answer: asyncio.Future[MetricsAnswer] = asyncio.get_running_loop().create_future()
        self._awaited[number] = answer
        follower.calls.put_nowait(MetricsCall(number))
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return (await answer).families
        except TimeoutError:
            return None
        finally:
            self._awaited.pop(number, None)
