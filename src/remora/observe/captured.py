"""What a process prints, taken line by line: `sys.stdout` and `sys.stderr` of our processes."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import TextIO

from remora.observe.log_lines import MAX_MESSAGE_CHARS

#: A program that draws progress bars never ends its line.
_MAX_OPEN_CHARS = 64 * 1024


class CapturedStream(io.TextIOBase):
    """Hands on each line that is written to it.

    Text that has no end yet is kept for each thread; a carriage return begins the line anew, as on
    a terminal. What is written to `buffer`, or to the descriptor, goes its own way.
    """

    def __init__(self, name: str, original: TextIO, take: Callable[[str, str], None]) -> None:
        """Take the place of a stream.

        Args:
            name: `STDOUT` or `STDERR`.
            original: the stream that was there.
            take: gets the name and a line, without its end.
        """
        self._name = name
        self._original = original
        self._take = take
        self._open = threading.local()

    def write(self, text: str) -> int:
        """Write text; lines that are complete are handed on."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        rest = getattr(self._open, "text", "") + text
        if "\n" in rest:
            *lines, rest = rest.split("\n")
            for line in lines:
                self._hand_on(line)
        elif len(rest) > _MAX_OPEN_CHARS:
            self._hand_on(rest)
            rest = ""
        elif "\r" in rest[:-1]:
            rest = rest[rest.rindex("\r", 0, -1) + 1 :]
        self._open.text = rest
        return len(text)

    def _hand_on(self, line: str) -> None:
        line = line.rstrip("\r").rpartition("\r")[2]
        for start in range(0, max(1, len(line)), MAX_MESSAGE_CHARS):
            self._take(self._name, line[start : start + MAX_MESSAGE_CHARS])

    def flush(self) -> None:
        """Do nothing: what is complete is on its way, and nobody waits for a disk here."""

    def close_line(self) -> None:
        """Hand on what this thread has written without an end."""
        rest, self._open.text = getattr(self._open, "text", ""), ""
        if rest.strip("\r"):
            self._hand_on(rest)

    def writable(self) -> bool:
        """Always true."""
        return True

    def isatty(self) -> bool:
        """A file is no terminal."""
        return False

    def fileno(self) -> int:
        """The descriptor below; it leads to the same file."""
        return self._original.fileno()

    def reconfigure(self, **options: object) -> None:
        """Take options of a text stream; each line is encoded by whoever writes it."""

    @property
    def buffer(self) -> io.BufferedIOBase:
        """The stream of bytes below; what is written to it is in the same file, as it is."""
        return self._original.buffer  # type: ignore[return-value]

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always the same."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What cannot be encoded is written as an escape."""
        return "backslashreplace"
