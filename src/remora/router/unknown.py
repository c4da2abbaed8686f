"""Waiting for a snapshot to name a deployment that none has named yet, or none names any more.

A process that is asked before it has heard of an application must not refuse what is about to be
there. Each call has its own full wait. What was deleted is waited for only as long as it may take
to hear of a successor that was deployed a moment ago.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from remora.config import nearest
from remora.core.snapshot import Snapshot
from remora.errors import DeploymentUnavailableError
from remora.router.call import Call, CallState
from remora.types import DeploymentID, Seconds

#: How long a call to a deployment that no snapshot has named yet waits for one.
UNKNOWN_WAIT_S: Seconds = 5.0
#: And one to a deployment of which this process knows that it was deleted.
DELETED_WAIT_S: Seconds = 0.25
UNKNOWN_REASON = "no application with such a deployment is running"


#: Names that are listed, at most.
_LISTED = 20


def why_unknown(deployment: DeploymentID, snapshot: Snapshot) -> str:
    """Say why a snapshot names no such deployment, and what it names. Pure."""
    if deployment.app_name in snapshot.apps:
        has = sorted(
            each.name for each in snapshot.deployments if each.app_name == deployment.app_name
        )
        return (
            f"application {deployment.app_name!r} has no deployment {deployment.name!r}."
            f"{nearest(deployment.name, has)} It has: {_listed(has)}"
        )
    if deployment.app_name in snapshot.leaving.values():
        return f"application {deployment.app_name!r} is being deleted"
    there = sorted(snapshot.apps)
    return (
        f"no application {deployment.app_name!r} is deployed."
        f"{nearest(deployment.app_name, there)} Deployed: {_listed(there)}"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED]) or 'none'}{more}"


class RouteWait:
    """The patience of calls for a first snapshot; the calls themselves stand in the queue."""

    __slots__ = ("_calls", "_deployment", "_known", "_loop", "_tell", "_timer", "reason")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deployment: DeploymentID,
        tell: Callable[[], str] = lambda: UNKNOWN_REASON,
    ) -> None:
        """Make it.

        Args:
            loop: of the router.
            deployment: that nobody knows.
            tell: says why, and what is known instead.
        """
        self._loop = loop
        self._deployment = deployment
        self._tell = tell
        #: Each with the moment its patience ends, the first of them first.
        self._calls: deque[tuple[float, Call]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._known = asyncio.Event()
        #: Why there is no route.
        self.reason = UNKNOWN_REASON

    @property
    def _patience_s(self) -> Seconds:
        return UNKNOWN_WAIT_S if self.reason == UNKNOWN_REASON else DELETED_WAIT_S

    def why(self) -> str:
        """Say why there is no route, for people."""
        return self._tell() if self.reason == UNKNOWN_REASON else self.reason

    def add(self, call: Call) -> None:
        """Give this call up if no snapshot comes in time."""
        # The patience changes only when nobody waits, so that these moments stay in order.
        self._calls.append((self._loop.time() + self._patience_s, call))
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._give_up_oldest)

    async def wait(self) -> None:
        """Wait for a snapshot, or until the time for one is over."""
        self._known.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._known.wait()

    def end(self, reason: str) -> None:
        """Nobody waits any more: the deployment has gone."""
        self.reason = reason
        self._forget_calls()

    def _forget_calls(self) -> None:
        self._calls.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_known(self) -> None:
        """A snapshot has named the deployment."""
        self.reason = UNKNOWN_REASON
        self._forget_calls()
        self._known.set()

    def _give_up_oldest(self) -> None:
        """The timer is always that of the oldest."""
        self._timer = None
        calls = self._calls
        now = self._loop.time()
        while calls and calls[0][0] <= now:
            _, call = calls.popleft()
            if call.state is CallState.QUEUED:
                call.give_up(DeploymentUnavailableError(self._deployment, self.why()))
        if calls:
            self._timer = self._loop.call_at(calls[0][0], self._give_up_oldest)
