"""Templates that have loaded something large: processes forked from one share its memory.

Theory of operation: such a template is forked from the supervisor when the first process asks for
what it holds, loads it at its first order, and forks like any other template. One that cannot load
says why to everybody who waits for it, and ends; the next that asks gets a new one. It is ended when
nobody has used it for a while, and at once while it loads: it may hang, and whoever asks next would
wait behind that.

Rules: what a template does inside is `template.py`; which processes there are is the table's.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from remora.engine import linux
from remora.engine.local.link import TemplateCalls, TemplateLink
from remora.engine.local.loop import Loop
from remora.engine.local.protocol import Message
from remora.home import Home

#: A template that nobody uses holds its memory for so long: an update or a crash of the only
#: replica should not have to load again.
IDLE_S = 30.0


@dataclass
class _Holder:
    link: TemplateLink
    key: str
    #: It takes orders.
    is_open: bool = True
    #: It has loaded: a child of it was reported.
    is_loaded: bool = False
    unused_since: float | None = None
    #: Why it could not load, in its own words.
    failure: str = ""


class SharedTemplates:
    """All of them, by what they hold. Generations are negative: those of the others are not."""

    def __init__(self, loop: Loop, home: Home, token: str, calls: TemplateCalls) -> None:
        self._loop = loop
        self._home = home
        self._token = token
        self._calls = calls
        self._holders: list[_Holder] = []
        self._generation = 0

    def tell(self, request: Message) -> tuple[int, bool]:
        """Tell a template to fork; returns its generation, and whether it still has to load.

        Raises:
            OSError: a template is needed and cannot be forked.
        """
        key = key_of(request)
        holder = next((each for each in self._holders if each.is_open and each.key == key), None)
        if holder is None:
            holder = self._make(key, request)
        holder.unused_since = None
        self._loop.tell(holder.link.channel, request)
        return holder.link.generation, not holder.is_loaded

    def _make(self, key: str, request: Message) -> _Holder:
        self._generation -= 1
        link = TemplateLink.fork(
            self._generation,
            home=self._home,
            token=self._token,
            sockets={},
            sessions=self._calls.sessions(),
            close_in_child=self._calls.close_in_child,
            shared={**request["shared"], "env": _common(request["env"])},
        )
        holder = _Holder(link, key)
        self._holders.append(holder)
        self._loop.watch(link.channel, lambda: self._on_channel(holder))
        self._loop.watch(link.report_fd, lambda: self._read_reports(holder))
        return holder

    def read_reports(self) -> None:
        """Read what children have reported by now."""
        for holder in list(self._holders):
            self._read_reports(holder)

    def _read_reports(self, holder: _Holder) -> None:
        messages, ended = holder.link.reports()
        for message in messages:
            holder.is_loaded = holder.is_loaded or message["state"] == "forked"
            if message["state"] == "failed" and not message["pid"]:
                holder.failure = str(message["reason"])
            self._calls.report(message)
        if ended:
            self._close(holder)
            self._loop.unwatch(holder.link.report_fd)
            self._holders.remove(holder)
            holder.link.close()
            pid = holder.link.pid
            reason = f"the process (pid {pid}) that loads what it shares with others has ended"
            self._calls.lost(holder.link.generation, holder.failure or reason)

    def _on_channel(self, holder: _Holder) -> None:
        # A template never speaks here: this is its end.
        if holder.link.channel.receive() is None:
            self._close(holder)

    def reaped(self, pid: int) -> None:
        """A child of the supervisor has ended; perhaps it was one of these."""
        for holder in self._holders:
            if holder.link.pid == pid:
                self._close(holder)

    def _close(self, holder: _Holder) -> None:
        if holder.is_open:
            holder.is_open = False
            self._loop.unwatch(holder.link.channel)
            linux.send_signal(holder.link.pid, signal.SIGKILL)

    # ------------------------------------------------------------------------------------- the end

    def end_unused(self, requests: Iterable[Message], now: float) -> float | None:
        """End those that no process uses any more; returns when to ask again, None: no need.

        Args:
            requests: of all living processes.
            now: the time.
        """
        used = {key_of(request) for request in requests if request.get("shared")}
        again: list[float] = []
        for holder in self._holders:
            if not holder.is_open or holder.key in used:
                holder.unused_since = None
                continue
            if holder.unused_since is None:
                holder.unused_since = now
            if not holder.is_loaded or now >= holder.unused_since + IDLE_S:
                self._close(holder)
            else:
                again.append(holder.unused_since + IDLE_S)
        return min(again, default=None)

    def processes(self) -> list[Message]:
        """Describe them, for status reports."""
        return [
            {"name": f"template-{-each.link.generation}", "pid": each.link.pid, "restarts": 0}
            for each in self._holders
            if each.is_open
        ]

    def close_in_child(self) -> None:
        """Close our ends in a fork."""
        for holder in self._holders:
            holder.link.close()

    def kill(self) -> None:
        """End all of them for good."""
        for holder in self._holders:
            linux.send_signal(holder.link.pid, signal.SIGKILL)


def key_of(request: Mapping[str, Any]) -> str:
    """Tell what a process shares, and with whom, from others. Pure.

    Environment variables may change what is loaded, except which GPUs a process sees.
    """
    known = json.dumps([request["shared"], _common(request["env"])], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()


def _common(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name != "CUDA_VISIBLE_DEVICES"}
