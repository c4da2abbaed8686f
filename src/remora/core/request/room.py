"""How a router and a full replica come together again without anybody asking twice.

A replica that is full turns a request away, and its router lowers its limit for that replica to
what the replica has of it. From then on two things bring it back: an answer, which frees a slot
that the router may use again; and the replica's FREED, which says how many slots are free and so
raises the limit. The replica calls whom it turned away, and whom asked to be told: a request that
reaches a lowered limit asks, because behind it more may wait.

Promise: while a replica has room, no router that knows of it waits for it and stays unheard.

Rules: pure; the caller counts.
"""

from __future__ import annotations


def limit_turned_away(outstanding: int) -> int:
    """How many requests may be outstanding at a replica that has just turned one away.

    Args:
        outstanding: those it has of us, without the one that came back.
    """
    return outstanding


def limit_called_back(limit: int, outstanding: int, room: int, max_ongoing: int) -> int:
    """How many may be outstanding now that a replica says that it has room.

    Args:
        limit: what held until now.
        outstanding: what it has of us.
        room: free slots, as it said; they are there for everybody who was called.
        max_ongoing: its own limit, which the result never exceeds if `limit` does not.
    """
    return max(limit, min(outstanding + room, max_ongoing))


def asks_for_room(outstanding: int, limit: int, max_ongoing: int) -> bool:
    """Whether the next request asks its replica to tell of room.

    Args:
        outstanding: before it is sent.
        limit: how many may be.
        max_ongoing: the replica's own limit: who may use all of that need not be told.
    """
    return limit < max_ongoing and outstanding + 1 >= limit


def is_called_back(room: int, *, has_answer: bool, was_turned_away: bool) -> bool:
    """Whether a replica with room tells a router that waits for it.

    Args:
        room: free slots, >= 1.
        has_answer: the slot became free by the end of a request of that router: the answer has
            told it.
        was_turned_away: a request of it was, since it was last told. The answer leaves before
            its slot is free, so that one may have been turned away in between, and then the
            answer has told nothing.
    """
    return room > 1 or not has_answer or was_turned_away
