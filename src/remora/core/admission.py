"""Who may come in: the queue of a router and the slots of a replica.

Rules: pure; the caller counts, this module compares.
"""

from __future__ import annotations


def may_queue(num_queued: int, max_queued: int) -> bool:
    """Whether one more request may wait.

    Args:
        num_queued: requests that wait already, >= 0.
        max_queued: the limit; -1: none.
    """
    return max_queued < 0 or num_queued < max_queued


def may_start(num_ongoing: int, max_ongoing: int, draining: bool) -> bool:
    """Whether a replica begins one more request.

    Args:
        num_ongoing: requests it works on, >= 0.
        max_ongoing: its limit, >= 1.
        draining: True: it only finishes what it has.
    """
    return not draining and num_ongoing < max_ongoing
