"""What was decided about the number of replicas, and why: plain values for logs and people.

Rules: plain frozen values.
"""

from __future__ import annotations

import msgspec


class Limit(msgspec.Struct, frozen=True):
    """One thing that changed the number on its way from the formula to the target."""

    #: `spare`, `panic`, `bounds`, `one_at_last`, `in_use`, `upscale_delay`, `downscale_delay`,
    #: `silence`, `error` or `no_answer`.
    name: str
    #: The number after it.
    num: int
    #: For people.
    why: str


class ScalingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One decision: inputs, formula, result, and each step between."""

    at_unix_s: float
    #: Replicas that there should have been before, and after.
    before: int
    after: int
    #: Replicas that ran.
    running: int
    #: Requests that waited, that were worked on, and both: over the window.
    queued: float
    ongoing: float
    total: float
    #: Seconds that the window had.
    window_s: float
    #: What made one number of the window.
    aggregation: str
    #: Whose formula it was.
    policy: str
    #: For people: the formula with its numbers.
    formula: str
    #: What the policy asked for; None: it gave no answer.
    asked: float | None
    limits: tuple[Limit, ...] = ()
    #: Why the policy gave no answer; empty: it did.
    error: str = ""

    @property
    def reason(self) -> str:
        """In one line."""
        steps = [self.formula, *(limit.why for limit in self.limits)]
        return "; ".join(step for step in steps if step)
