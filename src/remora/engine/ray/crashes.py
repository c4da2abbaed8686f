"""How soon a permanent process comes back: Ray starts it again the moment it is gone, for ever.

One that dies at each start would take a processor for that. So whoever is started again waits before
it begins, the longer the more often it has died in a row. It leaves in Ray's store how often that was,
for its successors and for `status`.

Rules: pure.
"""

from __future__ import annotations

import msgspec

from remora.core.restart import delay_s
from remora.types import Seconds

#: Where the records are.
PREFIX = "crash/"
#: A process that was there for so long has not died in a row.
HEALTHY_AFTER_S: Seconds = 10.0
#: How Ray begins to say that packages could not be installed.
_NO_ENVIRONMENT = "Failed to set up runtime environment."


class Crashes(msgspec.Struct, frozen=True):
    """What is known of the ends of one permanent process.

    Attributes:
        in_a_row: ends, each within `HEALTHY_AFTER_S` of the start before it.
        begins_at_unix_s: when the last start was to begin, after its pause.
    """

    in_a_row: int
    begins_at_unix_s: float

    @staticmethod
    def key(process_id: str) -> str:
        """Where it is stored."""
        return f"{PREFIX}{process_id}"

    def lately(self, now_unix_s: float) -> int:
        """Ends in a row, as far as they still say something: 0 once it has stayed."""
        return 0 if self._has_stayed(now_unix_s) else self.in_a_row

    def _has_stayed(self, now_unix_s: float) -> bool:
        return now_unix_s - self.begins_at_unix_s >= HEALTHY_AFTER_S


def started_again(before: Crashes | None, now_unix_s: float) -> tuple[Crashes, Seconds]:
    """Answer the start of a process that has ended.

    Args:
        before: what its predecessor left; None: nothing.
        now_unix_s: seconds since 1970; that clocks are set is no harm beyond one pause.

    Returns:
        What to leave for the next, and how long to wait before it begins.
    """
    in_a_row = (before.lately(now_unix_s) if before else 0) + 1
    # One that ends once comes back at once: most often it stays.
    pause_s = delay_s(in_a_row - 1)
    return Crashes(in_a_row, now_unix_s + pause_s), pause_s


def reason_of(error: BaseException) -> str:
    """Say in one line why an actor is gone. Pure."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines[:1] == [_NO_ENVIRONMENT]:
        # What follows is a traceback, or the output of an installer.
        causes = [line for line in lines[1:] if "error" in line.lower()] or lines[-1:]
        return f"Ray could not set up its environment: {causes[-1][:300].rstrip('.')}"
    told = next((line for line in lines if line.startswith("The actor is dead because")), "")
    return told.removeprefix("The actor is dead because ").rstrip(".") or " ".join(lines[:1])
