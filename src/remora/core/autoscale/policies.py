"""Which policies of users are asked about what, and when one that failed is asked again.

Rules: pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from remora.options.autoscaling import ScalingPolicySetup
from remora.types import Seconds

#: Between two processes of a policy that does not come up or does not answer.
FIRST_PAUSE_S: Seconds = 1.0
LONGEST_PAUSE_S: Seconds = 30.0


def policies_of(
    of_all: ScalingPolicySetup, of_each: Mapping[str, ScalingPolicySetup]
) -> dict[str, tuple[ScalingPolicySetup, tuple[str, ...]]]:
    """Say which policies of an application are asked, and about which of its deployments.

    Pure. Invariants: about each deployment at most one of them is asked. That of the application
    decides about all of them, and those of deployments say nothing beside it.

    Args:
        of_all: that of the application; without a path there is none.
        of_each: those of the deployments that are scaled, by name; likewise.

    Returns:
        By the name of the deployment that a policy belongs to; empty: to the application.
    """
    if of_all.path:
        return {"": (of_all, tuple(of_each))} if of_each else {}
    return {name: (own, (name,)) for name, own in of_each.items() if own.path}


def pause_s(failures: int) -> Seconds:
    """How long a policy rests after so many failures in a row, at least one. Pure."""
    # The exponent is bounded because 2.0**1024 overflows.
    return min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE_S)
