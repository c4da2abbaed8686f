"""The policy of a deployment whose users wrote its request router.

A request waits in the router's queue until the user's code has answered for it; the policy
declines it for so long. Only deployments with such a class come here.

Promises: whatever that code does, a request loses nothing but its say. It raises, or returns what
is no list of replicas: the request goes where power of two choices sends it. It says nothing for
`CHOOSE_LIMIT_S`: so do this request and, for `BYPASS_S`, all others. Replicas that are gone are
passed over. Each kind of error is logged once and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from remora.config import PolicySetup
from remora.context import ReplicaID
from remora.core.routing.power_of_two import PowerOfTwo
from remora.observe.routing_counts import RoutingCounts
from remora.observe.tracebacks import user_traceback
from remora.router.call import Call, CallState
from remora.router.link import ReplicaLink
from remora.router.seen import PendingRequest, RunningReplica, internal_id
from remora.router.user_side import Ranks, UserSide
from remora.transport.membership import mine
from remora.types import LOCAL_NODE, DeploymentID, Seconds
from remora.types import ReplicaID as PlainID
from remora.wire.messages import Envelope

_log = logging.getLogger("remora.router")
#: How long user code may think about one request.
CHOOSE_LIMIT_S: Seconds = 5.0
#: How long nobody asks it after that.
BYPASS_S: Seconds = 10.0
#: Requests that are asked about at the same time, at least.
_MIN_ASKED = 32


class Queue(Protocol):
    """The router, as its policy needs it."""

    loop: asyncio.AbstractEventLoop
    deployment: DeploymentID
    name: str
    counts: RoutingCounts

    @property
    def num_waiting(self) -> int:
        """Requests that have no replica."""

    def waiting_calls(self) -> Iterable[Call]:
        """These requests, the oldest first."""

    def pump(self) -> None:
        """Offer them to the policy again."""


@dataclass(frozen=True)
class QueueLengthInfo:
    """How much a replica works on, as it said."""

    accepted: bool
    num_ongoing_requests: int


class _Question:
    """One request about which the user's code is asked."""

    __slots__ = ("call", "over", "pending", "ranks", "task", "undecided")

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.pending = PendingRequest(call.envelope, call.body)
        #: What the user's code answered; None: nothing yet.
        self.ranks: Ranks | None = None
        #: It will not answer: any replica will do.
        self.undecided = False
        self.over: asyncio.Future[None] = loop.create_future()
        self.task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Its request waits, and for an answer."""
        return not self.ranks and not self.undecided and self.call.state is CallState.QUEUED


class CustomPolicy:
    """Asks the user's code, and picks a replica as it says."""

    waits_by_model: ClassVar[bool] = False

    def __init__(self, queue: Queue, setup: PolicySetup) -> None:
        self._queue = queue
        self._backoff = (setup.initial_backoff_s, setup.backoff_multiplier, setup.max_backoff_s)
        self._fallback = PowerOfTwo()
        self._members: dict[PlainID, tuple[ReplicaLink, RunningReplica]] = {}
        #: By the identity of the envelope, which the question's call keeps alive.
        self._questions: dict[int, _Question] = {}
        self._is_waking = False
        self._is_offering = False
        self._is_closed = False
        self._bypass_until: Seconds = 0.0
        #: How often the user's code failed, by what failed and how.
        self.errors: Counter[str] = Counter()
        self._user = UserSide(
            setup.code,
            setup.kwargs,
            {
                "deployment_id": queue.deployment,
                "handle_source": queue.name,
                "self_node_id": mine().node_id or LOCAL_NODE,
                "self_availability_zone": mine().zone or None,
                "num_pending": lambda: queue.num_waiting,
                "initial_backoff_s": setup.initial_backoff_s,
                "backoff_multiplier": setup.backoff_multiplier,
                "max_backoff_s": setup.max_backoff_s,
            },
            self._report,
        )

    # -- the policy -------------------------------------------------------------------------

    def choose(
        self, request: Envelope, candidates: Sequence[ReplicaLink], rng: random.Random
    ) -> ReplicaLink | None:
        """Pick as the user's code has answered; None: it has not, or means others."""
        question = self._questions.get(id(request))
        if question is None:
            if self._is_bypassed:
                return self._fallback.choose(request, candidates, rng)
            return None
        if question.undecided:
            chosen = self._fallback.choose(request, candidates, rng)
        else:
            chosen = _first_with_room(question.ranks or [], candidates)
        if chosen is not None:
            self._settle(question, chosen)
        return chosen

    def keep(self, members: Sequence[ReplicaLink]) -> None:
        """Tell the user's code which replicas there are."""
        self._fallback.keep(members)
        known = self._members
        self._members = {
            link.replica_id: known.get(link.replica_id) or (link, RunningReplica(link))
            for link in members
        }
        if known.keys() != self._members.keys():
            self._user.update([replica for _, replica in self._members.values()])
            for replica_id, (link, _) in known.items():
                if replica_id not in self._members and link.channel is None and not link.leaving:
                    self._tell("on_replica_actor_died", ReplicaID(replica_id))
        self.wake()

    @property
    def num_asked(self) -> int:
        """Waiting requests that may have an answer; they are among the oldest."""
        return len(self._questions) + _MIN_ASKED

    # -- what the router reports ---------------------------------------------------------------

    def wake(self) -> None:
        """A request waits: ask about it soon."""
        if not self._is_waking and not self._is_closed:
            self._is_waking = True
            self._queue.loop.call_soon(self._ask_more)

    def on_ended(self, call: Call, link: ReplicaLink) -> None:
        """A replica has answered, refused or lost a request."""
        replica_id = ReplicaID(link.replica_id)
        self._tell("on_request_completed", replica_id, internal_id(call.envelope))
        self._tell("on_new_queue_len_info", replica_id, QueueLengthInfo(not link.full, link.load))

    def on_interrupted(self, link: ReplicaLink) -> None:
        """The connection to a replica is gone, and it did not say goodbye."""
        self._tell("on_replica_actor_unavailable", ReplicaID(link.replica_id))

    def close(self) -> None:
        """Let go of the user's code; nobody is asked about what waits."""
        self._is_closed = True
        for question in self._questions.values():
            if question.task is not None:
                question.task.cancel()
        self._questions.clear()
        self._user.stop()

    # -- asking -------------------------------------------------------------------------------

    @property
    def _is_bypassed(self) -> bool:
        return self._user.has_failed or self._queue.loop.time() < self._bypass_until

    def _ask_more(self) -> None:
        self._is_waking = False
        if self._is_closed or not self._members:
            return
        if self._is_bypassed:
            self._queue.pump()
            return
        most = max(_MIN_ASKED, 2 * len(self._members))
        loop = self._queue.loop
        for call in self._queue.waiting_calls():
            if len(self._questions) >= most:
                return
            if id(call.envelope) not in self._questions:
                question = self._questions[id(call.envelope)] = _Question(call, loop)
                question.task = loop.create_task(self._decide(question))

    async def _decide(self, question: _Question) -> None:
        """Ask until the request has a replica or does not want one any more."""
        try:
            wait_s, factor, longest_s = self._user.backoff(self._backoff)
            while question.call.state is CallState.QUEUED and not question.over.done():
                answer = await self._answer(question)
                self._use(question, answer)
                if not question.over.done():
                    await asyncio.wait((question.over,), timeout=wait_s)
                    wait_s = min(wait_s * factor, longest_s)
        finally:
            if self._questions.get(id(question.call.envelope)) is question:
                del self._questions[id(question.call.envelope)]
            self.wake()

    async def _answer(self, question: _Question) -> Ranks | None:
        """Ask once; None: it does not know."""
        asked = asyncio.wrap_future(self._user.ask(question.pending))
        try:
            done, _ = await asyncio.wait((asked,), timeout=CHOOSE_LIMIT_S)
        finally:
            asked.cancel()
        if not done:
            self._bypass_until = self._queue.loop.time() + BYPASS_S
            late = TimeoutError(
                f"no answer after {CHOOSE_LIMIT_S:g} s; not asked for {BYPASS_S:g} s"
            )
            self._report("choose_replicas", late)
            return None
        answer = asked.result()
        if isinstance(answer, BaseException):
            if not self._user.has_failed:
                self._report("choose_replicas", answer)
            return None
        return answer

    def _use(self, question: _Question, answer: Ranks | None) -> None:
        if answer is None:
            question.undecided = True
        elif self._user.is_first_come:
            # Whoever has waited longest and has no answer; the others get those that follow.
            waiting = (q for q in self._questions.values() if q.is_open)
            next(waiting, question).ranks = answer
        else:
            question.ranks = answer
        # Answers come in bunches, and each offer goes over all that were asked about.
        if not self._is_offering:
            self._is_offering = True
            self._queue.loop.call_soon(self._offer)

    def _offer(self) -> None:
        self._is_offering = False
        if not self._is_closed:
            self._queue.pump()

    def _settle(self, question: _Question, chosen: ReplicaLink) -> None:
        """A request has its replica."""
        self._questions.pop(id(question.call.envelope), None)
        if not question.over.done():
            question.over.set_result(None)
        replica_id = ReplicaID(chosen.replica_id)
        known = self._members.get(chosen.replica_id)
        if known is not None and not question.pending.future.done():
            question.pending.future.set_result(known[1])
        self._tell("on_send_request", replica_id)
        self._tell("on_request_routed", question.pending, replica_id, None)
        self.wake()

    # -- hooks and errors ------------------------------------------------------------------------

    def _tell(self, hook: str, *args: object) -> None:
        self._user.tell(hook, *args)

    def _report(self, where: str, error: BaseException) -> None:
        """Count an error of the user's code, and log the first of its kind. From any thread."""
        kind = f"{where}: {type(error).__name__}"
        self.errors[kind] += 1
        self._queue.counts.router_errors[kind] += 1
        if self.errors[kind] == 1:
            text = user_traceback(error).rstrip()
            _log.error(
                "The request router of %s failed in %s: what it should have decided is decided by "
                "power of two choices. Later errors of this kind are only counted.\n%s",
                self._queue.deployment,
                where,
                text,
            )


def _first_with_room(ranks: Ranks, candidates: Sequence[ReplicaLink]) -> ReplicaLink | None:
    """In the best rank of which a replica has room, the one that works on the least. Pure."""
    able = {str(link.replica_id): link for link in candidates}
    for rank in ranks:
        found = [able[replica_id] for replica_id in rank if replica_id in able]
        if found:
            return min(found, key=lambda link: link.load)
    return None
