"""The router of one deployment: picks a replica for each call, queues what finds none.

All decisions are in `core` (`routing`, `room`, `look`, `queue_shares`, `retries`);
`Members` and `Waiting` keep the lists they decide on. It is never on the controller's path: it
works from the last snapshot.

Promises: waiting calls are served first come, first served. `Returned` says what becomes of those
that a replica did not take or finish.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from remora.config import PolicySetup
from remora.core.request.retry_budget import RetryBudget
from remora.core.request.room import asks_for_room
from remora.core.routing import Policy
from remora.core.routing.power_of_two import PowerOfTwo
from remora.core.snapshot import DeploymentRoute
from remora.errors import ConnectionLostError, DeploymentUnavailableError
from remora.observe.routing_counts import RoutingCounts
from remora.router.call import Call, CallState, StreamCall, UnaryCall
from remora.router.link import ReplicaLink
from remora.router.members import Members
from remora.router.policies import CUSTOM, built_in
from remora.router.returned import Returned
from remora.router.unknown import UNKNOWN_REASON, RouteWait
from remora.router.waiting import Waiting
from remora.types import DeploymentID
from remora.wire.codec import pack
from remora.wire.messages import WANTS_ROOM, Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.router.custom import CustomPolicy

# A member of an enumeration is slow to look up.
_SENT = CallState.SENT
_Choose = Callable[[Envelope, Sequence[ReplicaLink], random.Random], ReplicaLink | None]


class Router:
    """Sends the calls of this process to the replicas of one deployment."""

    def __init__(
        self,
        deployment: DeploymentID,
        name: str,
        rng: random.Random,
        why_unknown: Callable[[], str] = lambda: UNKNOWN_REASON,
    ) -> None:
        """Make a router on the running loop.

        Args:
            deployment: whose replicas.
            name: who we are, for the replicas' logs.
            rng: source of chance for the policy.
            why_unknown: says why no snapshot names the deployment, and what it names.
        """
        self.loop = asyncio.get_running_loop()
        self.deployment = deployment
        self.name = name
        self.budget = RetryBudget()
        self.rng = rng
        #: What the last snapshot says; None: nothing.
        self.route: DeploymentRoute | None = None
        #: Requests that one replica works on at a time, as the snapshot says.
        self.max_ongoing = 1
        #: The policy again, if users wrote it: it hears more than others.
        self.custom: CustomPolicy | None = None
        self.policy: Policy[ReplicaLink] = PowerOfTwo()
        # Looked up once, because every call needs it.
        self.choose: _Choose = self.policy.choose
        self.members = Members(self)
        self._open = self.members.open
        self.counts = RoutingCounts()
        self.waiting = Waiting(self)
        self.backlog = self.waiting.backlog
        self.returned = Returned(self)
        self._unknown = RouteWait(self.loop, deployment, why_unknown)
        self._sequence = 0

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
        route = self.route
        if route is not None and route.idempotent:
            call.envelope.idempotent = True
        self.budget.deposit()
        call.sequence = self._sequence = self._sequence + 1
        # Calls that wait while there is somebody open were all meant for others.
        if self._open:
            link = self.choose(call.envelope, self._open, self.rng)
            if link is not None:
                self.send(call, link)
                return
        if route is None:
            self._unknown.add(call)
        elif route.unavailable and not self.members.links:
            self.counts.refused["unavailable"] += 1
            call.fail(DeploymentUnavailableError(self.deployment, route.unavailable))
            return
        elif not self._may_join():
            call.fail(self.backlog.refuse(route, self.waiting.num))
            return
        self.waiting.add(call)
        if self.custom is not None:
            self.custom.wake()

    def submit_pinned(self, call: Call) -> None:
        """Send a call to the replica that it is pinned to, now or when that one has room."""
        link = call.pinned
        assert link is not None
        if link.position >= 0 and not link.pinned.num_waiting:
            self.send(call, link)
        else:
            link.wait_pinned(call)

    async def wait_known(self) -> None:
        """Wait until a snapshot has named this deployment.

        Raises:
            DeploymentUnavailableError: none does in time, or no replica runs nor will come.
        """
        if self.route is None:
            await self._unknown.wait()
        reason = self.unavailable_reason(self._unknown.why())
        if reason is not None:
            raise DeploymentUnavailableError(self.deployment, reason)

    def unavailable_reason(self, if_unknown: str) -> str | None:
        """Say why no replica runs nor will come; None: one does, or will."""
        route = self.route
        if route is None:
            return if_unknown
        return route.unavailable if route.unavailable and not self.members.links else None

    @property
    def links(self) -> tuple[ReplicaLink, ...]:
        """Every replica in the snapshot, in the order of their ids."""
        return tuple(sorted(self.members.links.values(), key=lambda link: link.replica_id))

    @property
    def num_waiting(self) -> int:
        """Calls that no replica has yet and any may take."""
        return self.waiting.num

    @property
    def num_pinned(self) -> int:
        """Calls that wait for one certain replica each."""
        return sum(link.pinned.num_waiting for link in self.members.links.values())

    def waiting_calls(self) -> Iterator[Call]:
        """Calls that no replica has yet, the oldest first; look at as few as you need."""
        return self.waiting.calls()

    def pump(self) -> None:
        """Offer waiting calls to the policy again."""
        self.waiting.pump()

    @property
    def num_requests(self) -> int:
        """Calls that this router was ever given."""
        return self._sequence

    @property
    def num_replicas(self) -> int:
        """Replicas in the snapshot."""
        return len(self.members.links)

    @property
    def is_known(self) -> bool:
        """A snapshot has named this deployment."""
        return self.route is not None

    # -- what the snapshot says -----------------------------------------------------------

    def update(self, route: DeploymentRoute) -> None:
        """Take over what a new snapshot says of this deployment."""
        old, self.route = self.route, route
        if route.max_ongoing_requests != self.max_ongoing:
            self.max_ongoing = route.max_ongoing_requests
            self.members.limit_to(self.max_ongoing)
        self.backlog.limit_to(route.max_queued_requests, self.waiting.num)
        self._unknown.on_known()
        if old is None or old.policy != route.policy:
            self._use_policy(route.policy)
        self.members.update(route)
        links = tuple(self.members.links.values())
        self.policy.keep(links)
        for link in links:
            self.members.reconsider(link)
        if route.unavailable and not links:
            self.waiting.fail_all(DeploymentUnavailableError(self.deployment, route.unavailable))
        self.waiting.pump()

    def take_share(self, share: int, version: int) -> None:
        """The controller says how many may wait here: those who do may stay.

        Before its first share a router goes by the limit of the deployment as a whole. What has
        come in between and is too much for its share is refused, the last ones first.
        """
        is_first = self.backlog.share.share is None
        self.backlog.share.take(share, version, self.waiting.num)
        if is_first and self.route is not None:
            may_stay = share + self.members.room_coming()
            while self.waiting.num > may_stay:
                self.waiting.refuse_last()

    def _may_join(self) -> bool:
        """Say whether one more may wait.

        Who only waits for a first connection to a replica is no queue: a caller that is new is
        not full, though its first calls come before its connections.
        """
        share, num = self.backlog.share, self.waiting.num
        return share.may_join(num) or share.may_join(max(0, num - self.members.room_coming()))

    def close(self, reason: str) -> None:
        """The deployment is gone, or this router is: fail what waits, finish what is sent."""
        self.route = None
        self._unknown.end(reason)
        self._drop_custom()
        self.members.retire_all()
        self.waiting.fail_all(DeploymentUnavailableError(self.deployment, reason))

    def disconnect(self) -> None:
        """Drop every connection at once; calls under way are lost."""
        links = list(self.members.links.values())
        self.close("this router was shut down")
        for link in links:
            link.close()

    # -- what links and calls report ------------------------------------------------------

    def on_link_ready(self, link: ReplicaLink) -> None:
        """Requests can be sent to this replica."""
        self.members.reconsider(link)
        self.waiting.pump()

    def on_link_unready(self, link: ReplicaLink) -> None:
        """No requests can be sent to this replica for now."""
        self.members.shut(link)
        if self.custom is not None and not link.leaving and not link.gone:
            self.custom.on_interrupted(link)
        if self.waiting.num:
            # Some of them may have waited for this one.
            self.waiting.pump()

    def on_answered(self, call: Call, load: int) -> None:
        """A replica has finished a call; its answer says how busy it is."""
        link = call.link
        assert link is not None
        link.outstanding = outstanding = link.outstanding - 1
        if load > outstanding:
            # Others have requests there, as of now.
            link.load = load
            self.members.note_others(link)
        else:
            link.load = outstanding
        link.full = False
        if self.custom is not None:
            self.custom.on_ended(call, link)
        if link.gone:
            link.close_if_idle()
            return
        if link.position < 0:
            self.members.reconsider(link)
        if self.waiting.num:
            self.waiting.pump()

    def on_abandoned(self) -> None:
        """A call that any replica might have taken was given up."""
        self.waiting.on_abandoned()

    # -- inside ---------------------------------------------------------------------------------

    def send(self, call: Call, link: ReplicaLink) -> None:
        """Send a call to a replica that may take it."""
        channel = link.channel
        assert channel is not None
        envelope = call.envelope
        if call.deadline is not None:
            envelope.timeout_s = max(0.0, call.deadline - self.loop.time())
        try:
            flags = 0
            if link.limit < self.max_ongoing and asks_for_room(
                link.outstanding, link.limit, self.max_ongoing
            ):
                flags = WANTS_ROOM
            # What a slot is reserved for is the policy's to look at, and goes out with the dispatch.
            body = b"" if envelope.hold else call.body
            call.number = channel.request(call, pack(envelope), body, flags)
        except ConnectionLostError:
            self.members.shut(link)
            self.returned.put_back(call)
            return
        except Exception as error:  # noqa: BLE001 - a message too large to frame fails alone
            call.fail(error)
            return
        call.link = link
        call.state = _SENT
        link.load += 1
        link.outstanding = outstanding = link.outstanding + 1
        if outstanding >= link.limit:
            self.members.shut(link)

    def _use_policy(self, setup: PolicySetup) -> None:
        self._drop_custom()
        if setup.name == CUSTOM:
            # Few deployments have one, and everybody would wait for the import.
            from remora.router.custom import CustomPolicy

            self.policy = self.custom = CustomPolicy(self, setup)
        else:
            self.policy = built_in(setup)
        self.choose = self.policy.choose

    def _drop_custom(self) -> None:
        custom, self.custom = self.custom, None
        if custom is not None:
            custom.close()
