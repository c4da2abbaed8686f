"""The supervisor's hold on its template process.

One `TemplateLink` is one template: its pid, the socket pair with its orders, and the pipe on which
its children report. A template that died leaves its pipe open for as long as a fork of it is still
under way; only when the pipe ends is it known what it did not fork.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remora.engine.local.protocol import LineBuffer, LineError, Message, Peer
from remora.engine.local.template import Template
from remora.home import Home

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class TemplateCalls:
    """What those who keep templates ask of their owner.

    Attributes:
        sessions: which processes live.
        report: a child reported something.
        lost: nothing of that generation is under way any more; why, where the template said it.
        close_in_child: close what is the supervisor's alone, in a fork of it.
        log: say something to the owner of the instance.
    """

    sessions: Callable[[], set[int]]
    report: Callable[[Message], None]
    lost: Callable[[int, str], None]
    close_in_child: Callable[[], None]
    log: Callable[[str], None]


class TemplateLink:
    """A template that runs, or one whose last children still report."""

    def __init__(self, generation: int, pid: int, channel: Peer, report_fd: int) -> None:
        self.generation = generation
        self.pid = pid
        self.channel = channel
        self.report_fd = report_fd
        self._reports = LineBuffer()

    @classmethod
    def fork(
        cls,
        generation: int,
        *,
        home: Home,
        token: str,
        sockets: Mapping[str, socket.socket],
        sessions: set[int],
        close_in_child: Callable[[], None],
        shared: Mapping[str, Any] | None = None,
    ) -> TemplateLink:
        """Fork a template from this process.

        Args:
            generation: tells templates from each other.
            home: of the instance.
            token: marks the instance's processes.
            sockets: listening sockets that processes can ask for.
            sessions: processes that live already.
            close_in_child: closes what is the supervisor's alone.
            shared: what the template loads for its children, see `Template`.

        Raises:
            OSError: there are too many processes, or no memory.
        """
        ours, theirs = socket.socketpair()
        report_read, report_write = os.pipe()
        supervisor_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            os.close(report_read)
            os.close(report_write)
            raise
        if pid == 0:
            ours.close()
            os.close(report_read)
            close_in_child()
            Template(
                home, token, supervisor_pid, theirs, report_write, sockets, sessions, shared
            ).run()
        theirs.close()
        os.close(report_write)
        os.set_blocking(report_read, False)
        return cls(generation, pid, Peer(ours), report_read)

    def reports(self) -> tuple[list[Message], bool]:
        """Read what children reported; the flag says that no more can come."""
        messages: list[Message] = []
        while True:
            try:
                data = os.read(self.report_fd, _CHUNK_BYTES)
            except BlockingIOError:
                return messages, False
            if not data:
                return messages, True
            try:
                messages += self._reports.feed(data)
            except LineError:
                # A child that was killed while it wrote: the rest of its line is lost, no more.
                self._reports = LineBuffer()

    def close(self) -> None:
        """Close our ends. A template that still runs takes this for the supervisor's death."""
        self.channel.close()
        os.close(self.report_fd)
