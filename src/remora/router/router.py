"""The router of one deployment: picks a replica for each call, queues what finds none.

All decisions are in `core` (`routing`, `admission`, `retry_budget`); this class keeps the
lists they decide on. It is never on the controller's path: it works from the last snapshot.

Promises: a call that no replica began is always tried elsewhere; one that was begun is tried
again only if it is idempotent, nothing of its answer has arrived, none of its streamed body was
taken, and the retry budget allows it. Waiting calls are served first come, first served.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from remora.config import PolicySetup
from remora.core.promises import is_repeatable
from remora.core.retry_budget import RetryBudget
from remora.core.routing import Policy
from remora.core.routing.power_of_two import PowerOfTwo
from remora.core.snapshot import DeploymentRoute
from remora.errors import (
    ConnectionLostError,
    DeploymentUnavailableError,
    ReplicaDiedError,
    ReplicaUnavailableError,
)
from remora.observe.routing_counts import RoutingCounts
from remora.router.backlog import Backlog
from remora.router.call import Call, CallState, StreamCall, UnaryCall
from remora.router.link import ReplicaLink
from remora.router.policies import CUSTOM, built_in
from remora.types import DeploymentID, ReplicaID, Seconds
from remora.wire.codec import pack
from remora.wire.messages import WANTS_ROOM, Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.router.custom import CustomPolicy

_Choose = Callable[[Envelope, Sequence[ReplicaLink], random.Random], ReplicaLink | None]
_log = logging.getLogger("remora.router")

#: A request that has killed this many replicas is not given another.
MAX_ATTEMPTS = 3
#: Calls that a pump passes over, where each may wait for a replica of its own.
_MAX_PASSED_OVER = 256
#: The whole of a longer queue is looked through this often at most.
_FULL_PUMP_S: Seconds = 0.05
#: How long a call to a deployment that no snapshot has named yet waits for one.
UNKNOWN_WAIT_S: Seconds = 5.0
#: A free slot is offered to requests for so many models that wait for others; then it stays free
#: until something changes, because asking on would take longer than the slot is worth.
_MAX_MODELS = 32


class Router:
    """Sends the calls of this process to the replicas of one deployment."""

    def __init__(self, deployment: DeploymentID, name: str, rng: random.Random) -> None:
        """Make a router on the running loop.

        Args:
            deployment: whose replicas.
            name: who we are, for the replicas' logs.
            rng: source of chance for the policy.
        """
        self.loop = asyncio.get_running_loop()
        self.deployment = deployment
        self.name = name
        self.budget = RetryBudget()
        self._rng = rng
        self._route: DeploymentRoute | None = None
        #: Requests that one replica works on at a time, as the snapshot says.
        self.max_ongoing = 1
        #: The policy again, if users wrote it: it hears more than others.
        self._custom: CustomPolicy | None = None
        self._policy: Policy[ReplicaLink] = PowerOfTwo()
        # Looked up once, because every call needs it.
        self._choose: _Choose = self._policy.choose
        self._links: dict[ReplicaID, ReplicaLink] = {}
        self._open: list[ReplicaLink] = []
        self._waiting: deque[Call] = deque()
        self._full_pump: asyncio.TimerHandle | None = None
        self._num_waiting = 0
        self.counts = RoutingCounts()
        self.backlog = Backlog(self.loop, self.counts)
        self._sequence = 0
        #: Calls that wait for a first snapshot, each with the moment its patience ends.
        self._unknown: deque[tuple[float, Call]] = deque()
        self._unknown_timer: asyncio.TimerHandle | None = None
        self._known = asyncio.Event()

    # -- what callers do ------------------------------------------------------------------

    def call(self, envelope: Envelope, body: Body) -> UnaryCall:
        """Send a request with one answer."""
        call = UnaryCall(self, envelope, body)
        self.submit(call)
        return call

    def stream(self, envelope: Envelope, body: Body) -> StreamCall:
        """Send a request whose answer is read frame by frame."""
        call = StreamCall(self, envelope, body)
        self.submit(call)
        return call

    def submit(self, call: Call) -> None:
        """Send a call now, or queue it, or fail it."""
        route = self._route
        if route is not None and route.idempotent:
            call.envelope.idempotent = True
        self.budget.deposit()
        call.sequence = self._sequence = self._sequence + 1
        # Calls that wait while there is somebody open were all meant for others.
        if self._open:
            link = self._choose(call.envelope, self._open, self._rng)
            if link is not None:
                self._send(call, link)
                return
        if route is None:
            self._await_route(call)
        elif route.unavailable and not self._links:
            self.counts.refused["unavailable"] += 1
            call.fail(DeploymentUnavailableError(self.deployment, route.unavailable))
            return
        elif not self.backlog.share.may_join(self._num_waiting):
            call.fail(self.backlog.refuse(route, self._num_waiting))
            return
        call.state = CallState.QUEUED
        self._waiting.append(call)
        self._num_waiting += 1
        self.backlog.on_joined(self._num_waiting)
        if self._custom is not None:
            self._custom.wake()

    def submit_pinned(self, call: Call) -> None:
        """Send a call to the replica that it is pinned to, now or when that one has room."""
        link = call.pinned
        assert link is not None
        if link.position >= 0 and not link.pinned.num_waiting:
            self._send(call, link)
        else:
            self._requeue_pinned(call, link)

    async def wait_known(self) -> None:
        """Wait until a snapshot has named this deployment.

        Raises:
            DeploymentUnavailableError: none does in time, or no replica runs nor will come.
        """
        if self._route is None:
            self._known.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(UNKNOWN_WAIT_S):
                    await self._known.wait()
        route = self._route
        if route is None or (route.unavailable and not self._links):
            reason = "no application with such a deployment is running"
            raise DeploymentUnavailableError(
                self.deployment, route.unavailable if route else reason
            )

    @property
    def links(self) -> tuple[ReplicaLink, ...]:
        """Every replica in the snapshot, in the order of their ids."""
        return tuple(sorted(self._links.values(), key=lambda link: link.replica_id))

    @property
    def num_waiting(self) -> int:
        """Calls that no replica has yet and any may take."""
        return self._num_waiting

    @property
    def num_pinned(self) -> int:
        """Calls that wait for one certain replica each."""
        return sum(link.pinned.num_waiting for link in self._links.values())

    def waiting_calls(self) -> Iterator[Call]:
        """Calls that no replica has yet, the oldest first; look at as few as you need."""
        return (call for call in self._waiting if call.state is CallState.QUEUED)

    def pump(self) -> None:
        """Offer waiting calls to the policy again."""
        self._pump()

    @property
    def num_requests(self) -> int:
        """Calls that this router was ever given."""
        return self._sequence

    @property
    def num_replicas(self) -> int:
        """Replicas in the snapshot."""
        return len(self._links)

    @property
    def is_known(self) -> bool:
        """A snapshot has named this deployment."""
        return self._route is not None

    # -- what the snapshot says -----------------------------------------------------------

    def update(self, route: DeploymentRoute) -> None:
        """Take over what a new snapshot says of this deployment."""
        old = self._route
        self._route = route
        if route.max_ongoing_requests != self.max_ongoing:
            self.max_ongoing = route.max_ongoing_requests
            for link in self._links.values():
                link.limit = self.max_ongoing
        self.backlog.limit_to(route.max_queued_requests, self._num_waiting)
        self._end_route_wait()
        self._known.set()
        if old is None or old.policy != route.policy:
            self._use_policy(route.policy)
        wanted = {replica.replica_id: replica for replica in route.replicas}
        for replica_id in [known for known in self._links if known not in wanted]:
            link = self._links.pop(replica_id)
            self._shut(link)
            link.retire()
        for replica_id, replica in wanted.items():
            if replica_id not in self._links:
                link = self._links[replica_id] = ReplicaLink(self, replica)
                link.begin()
        self._policy.keep(tuple(self._links.values()))
        for link in self._links.values():
            self._reconsider(link)
        if route.unavailable and not self._links:
            self._fail_waiting(DeploymentUnavailableError(self.deployment, route.unavailable))
        self._pump()

    def take_share(self, share: int, version: int) -> None:
        """The controller says how many may wait here: those who do may stay.

        Before its first share a router goes by the limit of the deployment as a whole. What has
        come in between and is too much for its share is refused, the last ones first.
        """
        is_first = self.backlog.share.share is None
        self.backlog.share.take(share, version, self._num_waiting)
        while is_first and self._route is not None and self._num_waiting > share:
            self._refuse_last()

    def close(self, reason: str) -> None:
        """The deployment is gone, or this router is: fail what waits, finish what is sent."""
        self._route = None
        self._end_route_wait()
        self._drop_custom()
        for link in self._links.values():
            self._shut(link)
            link.retire()
        self._links.clear()
        self._fail_waiting(DeploymentUnavailableError(self.deployment, reason))

    def disconnect(self) -> None:
        """Drop every connection at once; calls under way are lost."""
        links = list(self._links.values())
        self.close("this router was shut down")
        for link in links:
            link.close()

    # -- what links and calls report ------------------------------------------------------

    def on_link_ready(self, link: ReplicaLink) -> None:
        """Requests can be sent to this replica."""
        self._reconsider(link)
        self._pump()

    def on_link_unready(self, link: ReplicaLink) -> None:
        """No requests can be sent to this replica for now."""
        self._shut(link)
        if self._custom is not None and not link.leaving and not link.gone:
            self._custom.on_interrupted(link)
        if self._num_waiting:
            # Some of them may have waited for this one.
            self._pump()

    def on_answered(self, call: Call, load: int) -> None:
        """A replica has finished a call; its answer says how busy it is."""
        link = call.link
        assert link is not None
        link.outstanding -= 1
        others = load - link.outstanding
        link.others = others if others > 0 else 0
        link.full = False
        if self._custom is not None:
            self._custom.on_ended(call, link)
        if link.gone:
            link.close_if_idle()
            return
        if link.position < 0:
            self._reconsider(link)
        if self._num_waiting:
            self._pump()

    def on_rejected(self, call: Call) -> None:
        """A replica was full or is leaving: the call was never begun, so it goes elsewhere."""
        link = call.link
        assert link is not None
        link.outstanding -= 1
        # An own answer would have told us of room: wait for one, or for the replica's call.
        link.full = True
        link.limit = link.outstanding
        self._shut(link)
        if self._custom is not None:
            self._custom.on_ended(call, link)
        link.close_if_idle()
        self.counts.retried["turned_away"] += 1
        self._requeue(call)
        if (
            call.state is CallState.QUEUED
            and call.pinned is None
            and not self.backlog.share.may_stay(self._num_waiting)
        ):
            # It has its old place; had it never left that, the last one would not have come in.
            self._refuse_last()

    def on_call_lost(self, call: Call, error: ConnectionLostError, never_started: bool) -> None:
        """A replica went away before it finished a call."""
        link = call.link
        assert link is not None
        link.outstanding -= 1
        if self._custom is not None:
            self._custom.on_ended(call, link)
        if call.state is CallState.DONE:
            return
        envelope = call.envelope
        if never_started:
            self.counts.retried["never_started"] += 1
            self._requeue(call)
        elif (
            not call.answered
            and (envelope.idempotent or is_repeatable(link.promises, envelope))
            and envelope.attempt + 1 < MAX_ATTEMPTS
            and self.budget.withdraw()
        ):
            envelope.attempt += 1
            self.counts.retried["replica_died"] += 1
            self._requeue(call)
        else:
            call.fail(ReplicaDiedError(link.replica_id, envelope.request_id, str(error)))

    def on_abandoned(self) -> None:
        """A waiting call was given up; its place in the queue is skipped when it comes up."""
        self._num_waiting -= 1
        self.backlog.on_left(self._num_waiting)
        # Calls given up must not hold memory behind a queue that does not move.
        if len(self._waiting) > 2 * self._num_waiting + 64:
            self._waiting = deque(c for c in self._waiting if c.state is CallState.QUEUED)

    def _use_policy(self, setup: PolicySetup) -> None:
        self._drop_custom()
        if setup.name == CUSTOM:
            # Few deployments have one, and everybody would wait for the import.
            from remora.router.custom import CustomPolicy

            self._policy = self._custom = CustomPolicy(self, setup)
        else:
            self._policy = built_in(setup)
        self._choose = self._policy.choose

    def _drop_custom(self) -> None:
        custom, self._custom = self._custom, None
        if custom is not None:
            custom.close()

    # -- the lists --------------------------------------------------------------------------

    def _send(self, call: Call, link: ReplicaLink) -> None:
        channel = link.channel
        assert channel is not None
        envelope = call.envelope
        if call.deadline is not None:
            envelope.timeout_s = max(0.0, call.deadline - self.loop.time())
        try:
            flags = 0
            if link.limit < self.max_ongoing and link.outstanding + 1 >= link.limit:
                flags = WANTS_ROOM
            # What a slot is reserved for is the policy's to look at, and goes out with the dispatch.
            body = b"" if envelope.hold else call.body
            call.number = channel.request(call, pack(envelope), body, flags)
        except ConnectionLostError:
            self._shut(link)
            self._requeue(call)
            return
        except Exception as error:  # noqa: BLE001 - a message too large to frame fails alone
            call.fail(error)
            return
        call.link = link
        call.state = CallState.SENT
        link.outstanding += 1
        if link.outstanding >= link.limit:
            self._shut(link)

    def _requeue(self, call: Call) -> None:
        if call.state is CallState.DONE:
            return
        route = self._route
        if route is None or (route.unavailable and not self._links):
            reason = "it was deleted" if route is None else route.unavailable
            call.fail(DeploymentUnavailableError(self.deployment, reason))
            return
        if call.pinned is not None:
            self._requeue_pinned(call, call.pinned)
            return
        call.state = CallState.QUEUED
        call.link = None
        # Several calls may come back in any order; each takes its old place.
        waiting = self._waiting
        index = 0
        for other in waiting:
            if other.sequence > call.sequence:
                break
            index += 1
        waiting.insert(index, call)
        self._num_waiting += 1
        self.backlog.on_joined(self._num_waiting)
        if self._custom is not None:
            self._custom.wake()
        self._pump()

    def _requeue_pinned(self, call: Call, link: ReplicaLink) -> None:
        if link.gone or link.leaving:
            call.fail(ReplicaUnavailableError(link.replica_id))
            return
        link.pinned.add(call)

    def _serve_pinned(self, link: ReplicaLink) -> None:
        while link.position >= 0 and (call := link.pinned.take()) is not None:
            self._send(call, link)

    def _pump(self, everything: bool = False) -> None:
        waiting = self._waiting
        before = self._num_waiting
        #: Those that rather wait; others behind them need not.
        passed_over: list[Call] = []
        #: Their models, where only the model counts: nobody need ask for the next of them.
        models: set[str] = set()
        waits_by_model = self._policy.waits_by_model
        most = len(waiting) if everything else self._most_passed_over()
        while waiting and self._open and len(passed_over) <= most and len(models) < _MAX_MODELS:
            call = waiting.popleft()
            if call.state is not CallState.QUEUED:
                continue
            if models and call.envelope.multiplexed_model_id in models:
                passed_over.append(call)
                continue
            link = self._choose(call.envelope, self._open, self._rng)
            if link is None:
                passed_over.append(call)
                if waits_by_model:
                    models.add(call.envelope.multiplexed_model_id)
                continue
            self._num_waiting -= 1
            self._send(call, link)
        if len(passed_over) > most and self._custom is None and self._full_pump is None:
            self._full_pump = self.loop.call_later(_FULL_PUMP_S, self._pump_all)
        waiting.extendleft(reversed(passed_over))
        if self._num_waiting < before:
            self.backlog.on_sent(before - self._num_waiting, self._num_waiting)
        if not self._num_waiting:
            waiting.clear()

    def _most_passed_over(self) -> int:
        """How many waiting calls may decline what is open before a pump ends.

        Where each of a long queue waits for some replica of its own, looking through all of it
        whenever a slot is free costs more than it brings.
        """
        if self._custom is not None:
            return self._custom.num_asked
        return len(self._waiting) if self._policy.waits_by_model else _MAX_PASSED_OVER

    def _pump_all(self) -> None:
        """Look through the whole queue, for the sake of those that a short look never reaches."""
        self._full_pump = None
        self._pump(everything=True)

    def _refuse_last(self) -> None:
        """Refuse the call that came last of those that wait."""
        assert self._route is not None
        while (call := self._waiting.pop()).state is not CallState.QUEUED:
            pass
        self._num_waiting -= 1
        call.fail(self.backlog.refuse(self._route, self._num_waiting))
        self.backlog.on_left(self._num_waiting)

    def _reconsider(self, link: ReplicaLink) -> None:
        """Put a link into the open list, or take it out, as its state says."""
        may_take = (
            not link.gone
            and not link.full
            and not link.leaving
            and link.channel is not None
            and link.outstanding < link.limit
        )
        if may_take and link.position < 0:
            link.position = len(self._open)
            self._open.append(link)
            if link.pinned.num_waiting:
                self._serve_pinned(link)
        elif not may_take:
            self._shut(link)

    def _shut(self, link: ReplicaLink) -> None:
        """Take a link out of the open list in constant time."""
        position = link.position
        if position < 0:
            return
        last = self._open.pop()
        if last is not link:
            self._open[position] = last
            last.position = position
        link.position = -1

    def _fail_waiting(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, deque()
        self._num_waiting = 0
        self.backlog.on_left(0)
        for call in waiting:
            if call.state is CallState.QUEUED:
                call.fail(error)

    # -- calls to what no snapshot has named yet -------------------------------------------

    def _await_route(self, call: Call) -> None:
        self._unknown.append((self.loop.time() + UNKNOWN_WAIT_S, call))
        if self._unknown_timer is None:
            self._unknown_timer = self.loop.call_later(UNKNOWN_WAIT_S, self._give_up_oldest)

    def _give_up_oldest(self) -> None:
        """Each call has its own full wait; the timer is always that of the oldest."""
        self._unknown_timer = None
        unknown = self._unknown
        now = self.loop.time()
        while unknown and unknown[0][0] <= now:
            _, call = unknown.popleft()
            if call.state is CallState.QUEUED:
                reason = "no application with such a deployment is running"
                call.give_up(DeploymentUnavailableError(self.deployment, reason))
        if unknown:
            self._unknown_timer = self.loop.call_at(unknown[0][0], self._give_up_oldest)

    def _end_route_wait(self) -> None:
        self._unknown.clear()
        if self._unknown_timer is not None:
            self._unknown_timer.cancel()
            self._unknown_timer = None
