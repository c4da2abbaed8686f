"""How often sources report what is asked of a deployment, so that their controller keeps up with all of them.

Rules: pure.
"""

from __future__ import annotations

from remora.types import Seconds

#: The quickest that a source reports.
REPORT_S: Seconds = 0.25
#: Reports in a second that the controller asks for, from all sources together.
MAX_REPORTS_PER_S = 2000


def report_interval_s(num_sources: int, told_s: Seconds, most_per_s: int) -> Seconds:
    """Say how often each source is to report.

    Pure. Invariants: between half and twice of what the limit needs, and what was told stays while
    it is: every source hears of another interval, and sources come and go.

    Args:
        num_sources: that report.
        told_s: what they were told before.
        most_per_s: reports that all of them together may send in a second.
    """
    needed_s = max(REPORT_S, num_sources / most_per_s)
    return told_s if needed_s / 2 < told_s < needed_s * 2 else needed_s
