"""What is known, inside a replica, about the request that is being worked on.

A replica sets `current` around the user's code. Whoever runs below it (handle calls, log
lines, `get_multiplexed_model_id`) reads it. A context variable follows `await`, tasks and
threads started with a copy of the context, so nothing has to be passed by hand.

Rules: no imports from the rest of the package; nothing in here does IO.
"""

from __future__ import annotations

import itertools
import os
import random
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncio import Task


class Cancellable(Protocol):
    """A call made on behalf of a request; it is cancelled when the request is."""

    def cancel(self) -> object:
        """Give the call up."""


class RequestContext:
    """One request, as the code below it may see it.

    Attributes:
        request_id: the same at every level of a chain of calls.
        app_name: application of the replica that works on it; empty outside one.
        deployment: deployment of that replica.
        replica_id: that replica.
        route: route prefix that the request came in by; empty for handle calls.
        multiplexed_model_id: model that the caller asked for; empty: none.
        session_id: session that the caller named; empty: none.
        deadline: monotonic time at which the caller gives up; None: never.
        trace_context: W3C `traceparent`; empty: none.
        children: calls that were started for this request and have not ended.
        task: the one that works on it, from its beginning to its end; None outside a replica.
    """

    __slots__ = (
        "app_name",
        "children",
        "deadline",
        "deployment",
        "multiplexed_model_id",
        "replica_id",
        "request_id",
        "route",
        "session_id",
        "task",
        "trace_context",
    )

    def __init__(
        self,
        request_id: str = "",
        app_name: str = "",
        deployment: str = "",
        replica_id: str = "",
        route: str = "",
        multiplexed_model_id: str = "",
        session_id: str = "",
        deadline: float | None = None,
        trace_context: str = "",
    ) -> None:
        self.request_id = request_id
        self.app_name = app_name
        self.deployment = deployment
        self.replica_id = replica_id
        self.route = route
        self.multiplexed_model_id = multiplexed_model_id
        self.session_id = session_id
        self.deadline = deadline
        self.trace_context = trace_context
        # Most requests call nothing: the set is made by the first that does.
        self.children: set[Cancellable] | None = None
        self.task: Task[object] | None = None

    def children_set(self) -> set[Cancellable]:
        """The set of child calls; whoever ends one takes it out."""
        children = self.children
        if children is None:
            children = self.children = set()
        return children

    def add_child(self, call: Cancellable) -> set[Cancellable]:
        """Remember a call; whoever ends it takes it out of the set that is returned."""
        children = self.children_set()
        children.add(call)
        return children

    def cancel_children(self) -> int:
        """Cancel every call that has not ended; say how many those were."""
        children, self.children = self.children, None
        calls = tuple(children or ())
        for call in calls:
            call.cancel()
        return len(calls)


#: The request that the running code works on; None: it works on none.
current: ContextVar[RequestContext | None] = ContextVar("remora_request", default=None)


class _Ids:
    """Source of request ids: a random part for each process, and a count."""

    prefix: str
    count: itertools.count[int]

    @classmethod
    def renew(cls) -> None:
        """Take a new random part: at the start, and in every forked process."""
        text = f"{random.getrandbits(96):024x}"
        cls.prefix = f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-"
        cls.count = itertools.count(random.getrandbits(44))


# `random` reseeds itself after a fork, in a hook that was registered before this one.
_Ids.renew()
os.register_at_fork(after_in_child=_Ids.renew)


def new_request_id() -> str:
    """Make a new id in the form of a UUID (version 4).

    Every call from outside a request makes one, so it has to be quick: 0.3 µs instead of the
    2 µs of `str(uuid.uuid4())`. Ids of one process differ in their count, those of two in 58
    random bits.
    """
    return f"{_Ids.prefix}{next(_Ids.count):012x}"
