"""A clock that moves when it is told to."""

from __future__ import annotations

from remora.types import Seconds


class FakeClock:
    """Time for code that takes `now` as an argument or calls a clock.

    Attributes:
        now_s: the present.
        unix_offset_s: Unix time minus the present.
    """

    def __init__(self, now_s: Seconds = 1000.0, unix_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s
        self.unix_offset_s = unix_s - now_s

    def __call__(self) -> Seconds:
        """The present."""
        return self.now_s

    def unix(self) -> float:
        """The present as Unix time."""
        return self.now_s + self.unix_offset_s

    def advance(self, seconds: Seconds) -> Seconds:
        """Let time pass, and say what time it is then.

        Raises:
            ValueError: time goes forward only.
        """
        if seconds < 0:
            raise ValueError(f"time goes forward only, not by {seconds} s")
        self.now_s += seconds
        return self.now_s
