"""Calls that come back from a replica without an answer, and what becomes of them.

Promises: a call that no replica began is always tried elsewhere; one that was begun is tried
again only if it is idempotent, nothing of its answer has arrived, none of its streamed body was
taken, and the retry budget allows it. The decisions are `core.retries` and `core.retry_budget`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remora.core.request.promises import is_repeatable
from remora.core.request.retries import Again, is_made_again
from remora.errors import ConnectionLostError, DeploymentUnavailableError, ReplicaDiedError
from remora.router.call import Call, CallState

if TYPE_CHECKING:
    from remora.router.router import Router

# A member of an enumeration is slow to look up.
_QUEUED = CallState.QUEUED
_DONE = CallState.DONE


class Returned:
    """Sees to the calls that come back to one router."""

    __slots__ = ("_router",)

    def __init__(self, router: Router) -> None:
        self._router = router

    def on_rejected(self, call: Call) -> None:
        """A replica was full or is leaving: the call was never begun, so it goes elsewhere."""
        router = self._router
        link = call.link
        assert link is not None
        link.on_turned_away()
        router.members.shut(link)
        if router.custom is not None:
            router.custom.on_ended(call, link)
        link.close_if_idle()
        router.counts.retried["turned_away"] += 1
        self.put_back(call)
        if (
            call.state is _QUEUED
            and call.pinned is None
            and not router.backlog.share.may_stay(router.waiting.num)
        ):
            # It has its old place; had it never left that, the last one would not have come in.
            router.waiting.refuse_last()

    def on_call_lost(self, call: Call, error: ConnectionLostError, never_started: bool) -> None:
        """A replica went away before it finished a call."""
        router = self._router
        link = call.link
        assert link is not None
        link.on_lost_one()
        if router.custom is not None:
            router.custom.on_ended(call, link)
        if call.state is _DONE:
            return
        envelope = call.envelope
        again = is_made_again(
            never_started=never_started,
            answered=call.answered,
            repeatable=envelope.idempotent or is_repeatable(link.promises, envelope),
            attempt=envelope.attempt,
        )
        if again is Again.FREE:
            router.counts.retried["never_started"] += 1
            self.put_back(call)
        elif again is Again.AT_A_PRICE and router.budget.withdraw():
            envelope.attempt += 1
            router.counts.retried["replica_died"] += 1
            self.put_back(call)
        else:
            call.fail(ReplicaDiedError(link.replica_id, envelope.request_id, str(error)))

    def put_back(self, call: Call) -> None:
        """A call that a replica did not take or finish waits again."""
        router = self._router
        if call.state is _DONE:
            return
        reason = router.unavailable_reason("it was deleted")
        if reason is not None:
            call.fail(DeploymentUnavailableError(router.deployment, reason))
        elif call.pinned is not None:
            call.pinned.wait_pinned(call)
        else:
            router.waiting.put_back(call)
            if router.custom is not None:
                router.custom.wake()
            router.waiting.pump()
