"""Peers that have not proved themselves: how many there may be, and what the log says of them.

Whoever reaches a TCP port can open connections to it, send what he likes, and do it again. None of
that may cost more than a bounded amount of memory and of log.

Concurrency: on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from remora.types import Seconds

_log = logging.getLogger("remora.transport")

#: A peer that has not greeted after this long is cut off, so silent ones cannot pile up.
HELLO_TIMEOUT_S: Seconds = 10.0
#: Connections of a process that may be without a greeting; real peers greet in milliseconds.
MOST_STRANGERS = 256
#: A host that is refused for the same reason again is told of after this long, with a number.
TELL_AGAIN_S: Seconds = 600.0
_MOST_TOLD = 256


class Stranger(Protocol):
    """A connection without a greeting so far."""

    def refuse(self, reason: str) -> None:
        """Close it, and say why in the log."""


class Waiting:
    """The strangers of one process, the one that came first at the front."""

    def __init__(self) -> None:
        self._timers: dict[Stranger, asyncio.TimerHandle] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self, stranger: Stranger) -> None:
        """Give one a limited time; of too many, the one that has waited longest goes."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Those of a loop that has ended are gone with it.
            self._loop, self._timers = loop, {}
        self._timers[stranger] = loop.call_later(
            HELLO_TIMEOUT_S,
            stranger.refuse,
            f"no greeting: it has sent none within {HELLO_TIMEOUT_S:g} s",
        )
        if len(self._timers) > MOST_STRANGERS:
            oldest = next(iter(self._timers))
            oldest.refuse(f"no greeting: {MOST_STRANGERS} other connections have sent none either")
            self.leave(oldest)

    def leave(self, stranger: Stranger) -> None:
        """It has greeted, or is gone."""
        timer = self._timers.pop(stranger, None)
        if timer is not None:
            timer.cancel()


class Told:
    """What was logged of refusals, so that the same is not logged over and over. Pure."""

    def __init__(self) -> None:
        #: When it was logged, and how often it happened since, by host and kind.
        self._told: dict[tuple[str, str], tuple[Seconds, int]] = {}

    def count(self, host: str, kind: str, now: Seconds) -> int | None:
        """Count a refusal; returns how many like it were not logged, or None: log this one neither.

        Args:
            host: that was refused.
            kind: of the reason.
            now: monotonic seconds.
        """
        key = host, kind
        if key not in self._told and len(self._told) >= _MOST_TOLD:
            del self._told[next(iter(self._told))]
        when, num_silent = self._told.get(key, (now - TELL_AGAIN_S, 0))
        if now - when < TELL_AGAIN_S:
            self._told[key] = when, num_silent + 1
            return None
        self._told[key] = now, 0
        return num_silent


waiting = Waiting()
_told = Told()


def tell_refused(host: str, reason: str) -> None:
    """Log that a connection was refused here.

    Args:
        host: of the peer; empty: this machine.
        reason: what comes before its first colon is its kind.
    """
    _tell("Refused a connection from", host or "this machine", reason)


def tell_not_taken(peer: str, reason: str) -> None:
    """Log that no connection comes about to a peer that is there.

    Args:
        peer: its address.
        reason: what comes before its first colon is its kind.
    """
    _tell("No connection to", peer, reason)


def _tell(what: str, whom: str, reason: str) -> None:
    """Log it once for the same peer and the same kind of reason."""
    kind = f"{what} {reason.partition(':')[0]}"
    num_silent = _told.count(whom, kind, asyncio.get_running_loop().time())
    if num_silent is None:
        _log.debug("%s %s: %s", what, whom, reason)
        return
    more = f" ({num_silent} more of this kind since the last line)" if num_silent else ""
    _log.warning("%s %s: %s%s", what, whom, reason, more)


def host_of(transport: asyncio.BaseTransport) -> str:
    """Return the address that a TCP connection came from; empty for a Unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""
