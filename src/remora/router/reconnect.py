"""How long to wait before a connection that could not be made is tried again."""

from __future__ import annotations

from collections.abc import Iterator

from remora.types import Seconds

#: The first wait; each is twice as long as the one before.
FIRST_S: Seconds = 0.02
LAST_S: Seconds = 1.0


def waits() -> Iterator[Seconds]:
    """Give one wait after the other, without end."""
    wait_s = FIRST_S
    while True:
        yield wait_s
        wait_s = min(wait_s * 2, LAST_S)
