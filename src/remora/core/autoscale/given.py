"""What a decision is made from, beside demand: the situation, what a policy said, what is remembered.

Rules: pure values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from remora.core.autoscale.capacity import Bounds
from remora.types import Seconds


class Memory(msgspec.Struct, frozen=True):
    """What one decision has to know of those before; all times None: nothing of the kind.

    Attributes:
        rise_s: when so much was asked that it was a burst.
        answered_s: the rise that the last growth answered.
        up_since_s: since when more replicas are needed.
        down_since_s: since when fewer are enough.
        panic_s: when a burst was last seen in the short window.
        scaled_up_s: the last growth.
        scaled_down_s: the last shrinking.
    """

    rise_s: Seconds | None = None
    answered_s: Seconds | None = None
    up_since_s: Seconds | None = None
    down_since_s: Seconds | None = None
    panic_s: Seconds | None = None
    scaled_up_s: Seconds | None = None
    scaled_down_s: Seconds | None = None


@dataclass(frozen=True)
class Asked:
    """What a policy of the user's said, or why it said nothing.

    Attributes:
        num: replicas; None: it gave no answer, and the target stays.
        error: why; empty: it was not asked yet, or left this deployment out.
        policy: its name, for people.
    """

    num: float | None
    error: str = ""
    policy: str = ""


@dataclass(frozen=True)
class Situation:
    """What is decided about.

    Attributes:
        target: replicas that there should be now.
        running: replicas that run.
        bounds: of the number.
        silent: replicas that should have reported and did not.
        unix_offset_s: Unix time minus the time of the decision.
    """

    target: int
    running: int
    bounds: Bounds
    silent: Sequence[str] = ()
    unix_offset_s: float = 0.0
