"""Whether a request whose replica went away is made again.

What no replica began costs nothing and is always made again. What was begun may have had effects:
it is made again only if it may be, nothing of its answer is with the caller, none of its streamed
body is used up, and it has not killed replica after replica. Whether the budget has something left
is asked last, because asking takes it.

Rules: pure.
"""

from __future__ import annotations

from enum import IntEnum

#: A request that has killed this many replicas is not given another.
MAX_ATTEMPTS = 3


class Again(IntEnum):
    """What becomes of a request."""

    #: Never.
    NO = 0
    #: If the retry budget has something left.
    AT_A_PRICE = 1
    #: In any case.
    FREE = 2


def is_made_again(*, never_started: bool, answered: bool, repeatable: bool, attempt: int) -> Again:
    """Decide about one request. Pure.

    Args:
        never_started: the replica has certainly not begun it.
        answered: part of the answer has come, or part of the body is used up.
        repeatable: it may run twice.
        attempt: how many replicas went away with it before this one.
    """
    if never_started:
        return Again.FREE
    if answered or not repeatable or attempt + 1 >= MAX_ATTEMPTS:
        return Again.NO
    return Again.AT_A_PRICE
