"""JSON lines between the supervisor, its template and the controller.

    controller → supervisor   {"op": "connect"}                       events follow, now and live
                              {"op": "start", "id", "entrypoint", "title", "args", "env", "preload",
                               "python", "sys_path", "cwd"}     interpreter and folders of its own
                               and "pieces": [what these are in, to be kept for as long as it lives]
                               and "shared": {"names", "sys_path", "cwd", "version"} or null
                              {"op": "stop", "id", "timeout_s"}  {"op": "kill", "id"}
                              {"op": "processes", "seq"}  {"op": "shutdown"}
    supervisor → controller   {"event": "joined"}  {"event": "started", "id", "address", "pid"}
                              {"event": "exited", "id", "reason", "expected"}
                              {"event": "preparing", "id", "what"}
                              {"reply": seq, "processes": [{"name", "pid", "restarts", "crashes"?}]}
    supervisor → template     {"op": "fork", …} as in "start", and where it listens
    children → supervisor     {"state": "forked" | "up" | "failed", "id", "pid", …} on one pipe

Rules: bytes in, messages out; the one class with a socket does nothing but move them.
"""

from __future__ import annotations

import json
import socket
from typing import Any

#: A message: one JSON object.
Message = dict[str, Any]

#: Longest line that is accepted. A start command with a large environment stays far below it.
MAX_LINE_BYTES = 4 * 1024 * 1024

#: Bytes that may wait for a peer that does not read. It is stuck: it is let go.
MAX_UNSENT_BYTES = 16 * 1024 * 1024

_CHUNK_BYTES = 64 * 1024


class LineError(ValueError):
    """The other side sent something that is no JSON line."""


def encode(message: Message) -> bytes:
    """Make one line of a message."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class LineBuffer:
    """Collects bytes and gives out whole messages; any chunking gives the same ones."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Add bytes, return the messages that are complete.

        Raises:
            LineError: a line is no JSON object, or is too long. The buffer is of no use after it.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise LineError(f"a line is longer than {MAX_LINE_BYTES} bytes")
        return [_decode(line) for line in lines if line]


def _decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    # RecursionError: nested too deeply, which only junk is.
    except (ValueError, RecursionError) as error:
        raise LineError(f"{line[:60]!r} is no JSON: {error}") from None
    if not isinstance(message, dict):
        raise LineError(f"{line[:60]!r} is no JSON object")
    return message


class Peer:
    """One end of a stream of JSON lines that never blocks.

    Concurrency: used from one thread, by a `selectors` loop.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._incoming = LineBuffer()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor, so that a selector can watch this object."""
        return self.sock.fileno()

    @property
    def has_unsent(self) -> bool:
        """True: call `flush` when the socket takes more."""
        return bool(self._unsent)

    def receive(self) -> list[Message] | None:
        """Read what is there; None: the other side has closed.

        Raises:
            LineError: it sent something that is no JSON line.
        """
        try:
            data = self.sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return self._incoming.feed(data) if data else None

    def send(self, message: Message) -> bool:
        """Send now or later; False: the other side is gone or does not read."""
        self._unsent += encode(message)
        return self.flush() and len(self._unsent) <= MAX_UNSENT_BYTES

    def flush(self) -> bool:
        """Send what waits, as far as the socket takes it; False: the other side is gone."""
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return True
            except OSError:
                return False
            del self._unsent[:sent]
        return True

    def close(self) -> None:
        """Let go of the socket."""
        self.sock.close()
