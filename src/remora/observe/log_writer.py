"""Writes what a process logs, in a thread of its own: who logs never waits for a disk.

Theory of operation: an entry goes into a queue. A thread takes what is there, makes lines of it
and appends them to the file. It wakes at the first entry, and then at most every `PACE_S`, so
that many entries are one system call and little fighting over the interpreter. A queue
that is full, because the disk is slow, and a disk that is full, lose lines; how many is said in the
file as soon as it takes anything again.

The thread is started by the first entry: most replicas log nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from remora.observe.log_files import LogFile
from remora.observe.log_lines import Entry, Lines
from remora.types import Seconds

#: Between two rounds of the thread.
PACE_S: Seconds = 0.01
#: What may wait for a disk that does not keep up.
MAX_WAITING = 50_000
MAX_WAITING_CHARS = 32 * 1024 * 1024
#: Entries that are written together.
_TOGETHER = 500
#: What the last lines have at the end of the process.
_CLOSE_LIMIT_S: Seconds = 2.0


class LogWriter:
    """The log of one process.

    Concurrency: `put` in any thread. Everything else where it says.
    """

    def __init__(self, lines: Lines, file: LogFile, *, direct: bool = False) -> None:
        """Make a writer.

        Args:
            lines: makes lines of entries.
            file: takes them.
            direct: whoever logs writes, so that nothing is lost however the process ends.
        """
        self._lines = lines
        self._file = file
        self._entries: deque[Entry | Callable[[], None]] = deque()
        self._waiting_chars = 0
        self._lost = 0
        self._trouble = ""
        self._wake = threading.Lock()
        self._wake.acquire()
        self._is_awake = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        #: Written by whoever logs: that was asked for, the process ends, or it is a fork of the one
        #: that this belongs to.
        self._is_direct = direct
        #: Held by whoever sees to the size of the file then.
        self._tending = threading.Lock()
        self._is_closing = False
        #: The last line was cut off in the middle.
        self._is_torn = False

    def put(self, entry: Entry, num_chars: int) -> None:
        """Let an entry be written. Never waits.

        Args:
            entry: what was logged.
            num_chars: about how long it is.
        """
        if self._is_direct:
            self._write_now(entry)
            return
        entries = self._entries
        if len(entries) >= MAX_WAITING or self._waiting_chars >= MAX_WAITING_CHARS:
            self._lost += 1
            return
        self._waiting_chars += num_chars
        entries.append(entry)
        if not self._is_awake:
            self._rouse()

    def follow(
        self, lines: Lines, file: LogFile | None, on_changed: Callable[[Path], None]
    ) -> None:
        """Write what comes from now on in another way.

        Args:
            lines: makes lines of entries.
            file: takes them; None: the same one.
            on_changed: told the path of another file, once what came before is in the old one.
        """

        def change() -> None:
            self._lines = lines
            if file is not None:
                self._file.close()
                self._file = file
                on_changed(file.path)

        self._do(change)

    def tend(self) -> None:
        """See to the size of the file, to which others may have written. Never waits."""
        if self._file.is_due:
            self._do(lambda: None)

    def _do(self, change: Callable[[], None]) -> None:
        if self._is_direct:
            change()
        else:
            self._entries.append(change)
            self._rouse()

    def _rouse(self) -> None:
        self._is_awake = True
        if self._thread is None:
            self._start()
        try:
            self._wake.release()
        except RuntimeError:
            pass  # Another thread was faster.

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._is_direct:
                thread = threading.Thread(target=self._run, name="remora-log", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # No thread can be had (the process ends, or there are too many).
                    self._is_direct = True
                    self._write_all()
                    return
                self._thread = thread

    def close(self) -> None:
        """Write what is left; what comes later is written by whoever logs it."""
        self._is_closing = True
        thread = self._thread
        if thread is not None:
            self._rouse()
            thread.join(_CLOSE_LIMIT_S)
            if thread.is_alive():
                return  # The disk stands still, and it is not for us to wait for it.
        self._is_direct = True
        self._write_all()

    # -- in the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            self._is_awake = False
            self._write_all()
            if self._is_closing:
                return
            time.sleep(PACE_S)

    def _write_all(self) -> None:
        entries = self._entries
        while True:
            parts: list[bytes] = []
            change = None
            while len(parts) < _TOGETHER:
                try:
                    entry = entries.popleft()
                except IndexError:
                    self._waiting_chars = 0
                    break
                if callable(entry):
                    change = entry
                    break
                parts.append(self._lines.line(entry))
            self._append(parts)
            if change is not None:
                change()
            elif not entries:
                return

    def _append(self, parts: list[bytes]) -> None:
        lost = self._lost
        data = b"".join(parts)
        if lost:
            why = self._trouble or "they came faster than the disk takes them"
            data = self._lines.note(f"{lost} lines of this log are lost: {why}") + data
        try:
            if data:
                self._file.write(b"\n" + data if self._is_torn else data)
                self._is_torn = False
        except OSError as error:
            self._trouble = error.strerror or str(error)
            self._lost += len(parts)
            self._is_torn = True
        else:
            self._lost -= lost
            self._trouble = ""
        try:
            self._file.tend()
        except OSError:
            pass  # It goes on as it is; the next round tries again.

    def _write_now(self, entry: Entry) -> None:
        try:
            self._file.write(self._lines.line(entry))
            if self._file.is_due and self._tending.acquire(blocking=False):
                try:
                    self._file.tend()
                finally:
                    self._tending.release()
        except OSError:
            pass  # Nobody is there any more who could be told.

    def start_over_in_child(self) -> None:
        """Write directly: the thread has stayed in the parent, with what it has to write."""
        self._entries.clear()
        self._thread = None
        self._is_direct = True
        self._starting = threading.Lock()
        self._tending = threading.Lock()
