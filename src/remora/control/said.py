"""Which of many messages about one thing are worth a line in the log.

Rules: pure; time is an argument.
"""

from __future__ import annotations

from remora.types import Seconds

#: Different texts that are logged in one stretch of time; what makes more says nothing by them.
MAX_TEXTS = 5
STRETCH_S: Seconds = 600.0


class Said:
    """What was said of one thing lately."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._since_s: Seconds = 0.0

    def say(self, text: str, now: Seconds) -> str | None:
        """Give the text as it is to be logged; None: it is not.

        Args:
            text: may be another one each time: with a number, or an address in it.
            now: on the caller's clock.
        """
        if now - self._since_s >= STRETCH_S:
            self._texts.clear()
        if text in self._texts or len(self._texts) >= MAX_TEXTS:
            return None
        if not self._texts:
            self._since_s = now
        self._texts.add(text)
        again = f"{STRETCH_S / 60:g} minutes"
        if len(self._texts) == MAX_TEXTS:
            return f"{text} Whatever else goes wrong with it is logged in {again} at the earliest."
        return f"{text} Said once in {again}."
