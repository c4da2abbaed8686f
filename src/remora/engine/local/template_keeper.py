"""Keeps one template process alive, whatever happens to it.

A template that dies takes no process with it: they are the supervisor's children. What it was
told to fork and did not is asked of its successor, once it is known that nothing of it is still
under way.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Mapping

from remora.engine import linux
from remora.engine.local.link import TemplateCalls, TemplateLink
from remora.engine.local.loop import Loop
from remora.engine.local.processes import crashes_in_row, restart_delay_s
from remora.engine.local.protocol import Message
from remora.home import Home

#: Wait at least this long when the kernel refuses to fork: it is out of processes or memory.
_FORK_REFUSED_S = 0.1


class TemplateKeeper:
    """The template of now, and those whose last children still report."""

    def __init__(
        self,
        loop: Loop,
        home: Home,
        token: str,
        sockets: Mapping[str, socket.socket],
        calls: TemplateCalls,
        renewed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._home = home
        self._token = token
        self._sockets = sockets
        self._calls = calls
        #: Called when there is a template again.
        self._renewed = renewed
        self._links: list[TemplateLink] = []
        self._current: TemplateLink | None = None
        self._crashes = 0
        self._since = 0.0
        self.generation = 0
        #: When the next template is to be forked; None: there is one.
        self.due_at: float | None = None

    @property
    def pid(self) -> int:
        """Of the template; 0: there is none at the moment."""
        return self._current.pid if self._current else 0

    def fork(self) -> None:
        """Make a template, or plan to try again."""
        self.generation += 1
        now = time.monotonic()
        try:
            link = TemplateLink.fork(
                self.generation,
                home=self._home,
                token=self._token,
                sockets=self._sockets,
                sessions=self._calls.sessions(),
                close_in_child=self._close_in_template,
            )
        except OSError as error:
            self._crashes += 1
            self.due_at = now + max(_FORK_REFUSED_S, restart_delay_s(self._crashes))
            self._calls.log(f"cannot fork the template process ({error.strerror}); trying again")
            return
        self._current, self.due_at, self._since = link, None, now
        self._links.append(link)
        self._loop.watch(link.channel, lambda: self._on_channel(link))
        self._loop.watch(link.report_fd, lambda: self._read_reports(link))
        self._renewed()

    def close_in_child(self) -> None:
        """Close our ends in a fork."""
        for link in self._links:
            link.close()

    def _close_in_template(self) -> None:
        self.close_in_child()
        self._calls.close_in_child()

    def tell(self, message: Message) -> int:
        """Tell the template something; returns its generation, 0 when there is none."""
        if self._current is None:
            return 0
        self._loop.tell(self._current.channel, message)
        return self._current.generation

    def read_reports(self) -> None:
        """Read what children have reported by now."""
        for link in list(self._links):
            self._read_reports(link)

    def _read_reports(self, link: TemplateLink) -> None:
        messages, ended = link.reports()
        for message in messages:
            self._calls.report(message)
        if ended:
            # Neither the template nor a fork of it that has not come up holds the pipe now.
            self._drop(link)
            self._loop.unwatch(link.report_fd)
            self._links.remove(link)
            link.close()
            self._calls.lost(link.generation, "")

    def _on_channel(self, link: TemplateLink) -> None:
        # A template never speaks here: this is its end.
        if link.channel.receive() is None:
            self._drop(link)

    def reaped(self, pid: int) -> None:
        """A child of the supervisor has ended; perhaps it was the template."""
        if self._current is not None and pid == self._current.pid:
            self._drop(self._current)

    def _drop(self, link: TemplateLink) -> None:
        if self._current is not link:
            return
        self._current = None
        self._loop.unwatch(link.channel)
        linux.send_signal(link.pid, signal.SIGKILL)
        now = time.monotonic()
        self._crashes = crashes_in_row(self._crashes, self._since, now)
        self.due_at = now + restart_delay_s(self._crashes)
        self._calls.log(f"the template process (pid {link.pid}) ended; forking a new one")

    def kill(self) -> None:
        """End the template for good.

        Not by closing its channel: it would take that for the supervisor's death, and kill the
        supervisor with all the rest.
        """
        if self._current is not None:
            linux.send_signal(self._current.pid, signal.SIGKILL)
