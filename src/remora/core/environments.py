"""Which environments that were built for processes are kept although nothing needs them.

Theory of operation: what may be needed stays, whatever it takes. The rest is a cache: somebody may
deploy it again, and an install can take minutes. So it stays for a while for sure, and then as long
as there is not too much of it, what was used last longest.

Rules: pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from remora.types import Seconds


@dataclass(frozen=True)
class Piece:
    """A part of environments that lies ready: packages, or the copy of a folder.

    Attributes:
        used_unix_s: when it was last known to be used or needed.
    """

    name: str
    num_bytes: int
    used_unix_s: float


@dataclass(frozen=True)
class CacheLimits:
    """What is kept of that which nothing needs.

    Attributes:
        grace_s: nothing goes that was used so recently. Covers the moments in which something is on
            its way to be needed: an application is built, a controller begins anew.
        max_idle_s: nothing stays that was not used for so long.
        max_pieces: how many stay beyond the grace time.
        max_bytes: how large they are together.
    """

    grace_s: Seconds = 3600.0
    max_idle_s: Seconds = 30 * 86400.0
    max_pieces: int = 20
    max_bytes: int = 10 << 30


#: Of one state folder: as many as a developer goes back and forth between, and a few large ones.
CACHE_LIMITS = CacheLimits()


def superfluous(
    pieces: Iterable[Piece],
    needed: Collection[str],
    now_unix_s: float,
    limits: CacheLimits = CACHE_LIMITS,
) -> list[tuple[Piece, str]]:
    """Say which pieces may go, and why; what was not used for longest comes first.

    Pure.

    Args:
        pieces: all that lie ready.
        needed: names of those that something may need.
        now_unix_s: the time, as Unix time.
        limits: what is kept of the others.
    """
    unneeded = [piece for piece in pieces if piece.name not in needed]
    unneeded.sort(key=lambda piece: (-piece.used_unix_s, piece.name))
    gone: list[tuple[Piece, str]] = []
    num_kept, kept_bytes = 0, 0
    for piece in unneeded:
        why = ""
        idle_s = now_unix_s - piece.used_unix_s
        if idle_s >= limits.grace_s:
            if idle_s >= limits.max_idle_s:
                why = f"not used for {idle_s / 86400:.0f} days"
            elif num_kept >= limits.max_pieces:
                why = f"{limits.max_pieces} others were used since"
            elif kept_bytes + piece.num_bytes > limits.max_bytes:
                why = f"with those used since it is over {limits.max_bytes >> 20} MiB"
        if why:
            gone.append((piece, why))
        else:
            num_kept += 1
            kept_bytes += piece.num_bytes
    return gone[::-1]
