"""How long a client may take for what, and whether it keeps to it.

Rules: pure. The clock's readings are arguments; the connection has the timers.
"""

from __future__ import annotations

from remora.types import Seconds

#: A client has this long from the first byte of a request's head to the last.
HEAD_TIMEOUT_S: Seconds = 30.0
#: A client that sends no byte of a body that is expected is given up after this long.
BODY_TIMEOUT_S: Seconds = 60.0
#: In each such time a body has to come at this rate, or its client holds a slot for nothing.
MIN_BODY_BYTES_PER_S = 100
#: A client that takes none of what waits for it, and is owed nothing more, is cut after this long.
TAKE_TIMEOUT_S: Seconds = 30.0
#: After a refused head or upload, and an idle connection's end, the client's bytes are read and
#: dropped for this long, so that it sees the answer, or the end, and not a reset.
LINGER_S: Seconds = 2.0
#: When the server stops, an idle connection is answered one more request that comes within this
#: time: it may be on its way already.
LAST_REQUEST_S: Seconds = 0.25
#: How often a client is looked for that does not get to send, or to take what it is sent.
WATCH_EVERY_S: Seconds = 0.5
#: A client that sends no more gets its answer within this time, or it is looked whether it is there.
HALF_CLOSE_S: Seconds = 0.02
#: How often a connection is looked at, at most.
LOOK_EVERY_S: Seconds = 0.05
#: Requests that are kept of those that a client sends ahead (pipelining); no more are read then.
MAX_REQUESTS_AHEAD = 1000
#: Bytes in which heads may be that are parsed without a look at how many requests wait.
PIECE_BYTES = 16 * 1024


class Progress:
    """What one client has sent and taken lately.

    Attributes:
        since: when the connection fell idle, the head that is being read began, or the last bytes
            of a body came.
    """

    __slots__ = ("_unsent", "_unsent_since", "_window_bytes", "_window_since", "since")

    def __init__(self, now: Seconds) -> None:
        self.since = now
        self._window_since = now
        self._window_bytes = 0
        self._unsent = 0
        self._unsent_since = now

    def begin_body(self) -> None:
        """A head is complete; what follows is a body."""
        self._window_since = self.since
        self._window_bytes = 0

    def on_body(self, now: Seconds, size: int) -> None:
        """Bytes of a body have come."""
        self.since = now
        self._window_bytes += size

    def restart(self, now: Seconds) -> None:
        """Until now it was not the client who kept a body waiting."""
        self.since = self._window_since = now
        self._window_bytes = 0

    def fault_of_body(self, now: Seconds, timeout_s: Seconds) -> str | None:
        """What is wrong with how a body comes; None: nothing yet."""
        if now - self.since >= timeout_s:
            return f"No byte of the request's body came for {timeout_s:g} s."
        window_s = now - self._window_since
        if window_s < timeout_s:
            return None
        size = self._window_bytes
        if size < window_s * MIN_BODY_BYTES_PER_S:
            return (
                f"{size} bytes of the request's body came in {window_s:.3g} s; it has to come at "
                f"{MIN_BODY_BYTES_PER_S} bytes per second."
            )
        self._window_since, self._window_bytes = now, 0
        return None

    def is_taking(self, now: Seconds, unsent: int, timeout_s: Seconds) -> bool:
        """Whether the client still takes what waits for it, of which `unsent` bytes are left."""
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
            return True
        return now - self._unsent_since < timeout_s
