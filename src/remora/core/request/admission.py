"""Who may come in at a replica; the queues of routers are the business of `queue_shares`.

Rules: pure; the caller counts, this module compares.
"""

from __future__ import annotations


def may_start(num_ongoing: int, max_ongoing: int, draining: bool) -> bool:
    """Whether a replica begins one more request.

    Args:
        num_ongoing: requests it works on, >= 0.
        max_ongoing: its limit, >= 1.
        draining: True: it only finishes what it has.
    """
    return not draining and num_ongoing < max_ongoing
