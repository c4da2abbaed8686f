"""How far a router looks through its queue when a slot is free.

The first call that takes the slot gets it. Calls that rather wait for another replica are passed
over, and looking past all of a long queue whenever a slot is free costs more than it brings: the
requests behind would all be slower for the sake of one slot.

Rules: pure.
"""

from __future__ import annotations

from remora.types import Seconds

#: Calls that are passed over, where each may wait for a replica of its own.
MAX_PASSED_OVER = 256
#: The whole of a longer queue is looked through this often at most.
FULL_LOOK_S: Seconds = 0.05
#: A free slot is offered to requests for so many models that wait for others; then it stays free
#: until something changes, because asking on would take longer than the slot is worth.
MAX_MODELS = 32


def most_passed_over(num_queued: int, waits_by_model: bool, num_asked: int | None) -> int:
    """How many calls may decline what is open before the look ends.

    Args:
        num_queued: entries of the queue.
        waits_by_model: one that declines speaks for all others of its model; so there is no
            need for a bound, but for one on the models.
        num_asked: calls about which the user's code was asked, the only ones that may accept;
            None: it decides nothing here.
    """
    if num_asked is not None:
        return num_asked
    return num_queued if waits_by_model else MAX_PASSED_OVER


def is_over(num_passed_over: int, num_models: int, most: int) -> bool:
    """Whether to look no further: too many have declined."""
    return num_passed_over > most or num_models >= MAX_MODELS


def needs_full_look(num_passed_over: int, most: int, *, is_asked: bool) -> bool:
    """Whether to look through all of the queue soon, for those that this look never reached.

    Args:
        num_passed_over: by this look.
        most: its bound.
        is_asked: the user's code decides, and says itself when somebody may accept.
    """
    return num_passed_over > most and not is_asked
