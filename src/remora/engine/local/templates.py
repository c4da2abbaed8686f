"""Who forks which process: the template of everything, or one that has loaded what a process shares.

Rules: here it is known which templates there are and what is asked of which; what one does inside
is `template.py`, and which processes there are is the table's.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from remora.engine.local.link import TemplateCalls
from remora.engine.local.loop import Loop
from remora.engine.local.processes import Fork, Order, Process, ProcessTable, Stage
from remora.engine.local.protocol import Message
from remora.engine.local.shared_template import SharedTemplates
from remora.engine.local.template_keeper import TemplateKeeper
from remora.home import Home


@dataclass(frozen=True)
class Owner:
    """What the templates ask of the supervisor.

    Attributes:
        do: carry out orders of the table.
        publish: tell the controller something.
        close_in_child: close what is the supervisor's alone, in a fork of it.
        log: say something to the owner of the instance.
    """

    do: Callable[[list[Order]], None]
    publish: Callable[[Message], None]
    close_in_child: Callable[[], None]
    log: Callable[[str], None]


class Templates:
    """All templates of an instance, and the table of what they have forked."""

    def __init__(
        self,
        loop: Loop,
        home: Home,
        token: str,
        sockets: Mapping[str, socket.socket],
        table: ProcessTable,
        owner: Owner,
    ) -> None:
        self._sockets = sockets
        self._table = table
        self._owner = owner
        calls = TemplateCalls(
            sessions=table.sessions,
            report=self.on_report,
            lost=lambda generation, _: owner.do(table.lost(generation)),
            close_in_child=self._close_in_keepers,
            log=owner.log,
        )
        shared_calls = TemplateCalls(
            sessions=table.sessions,
            report=self.on_report,
            lost=lambda generation, why: owner.do(table.failed_to_load(generation, why)),
            close_in_child=self._close_in_shared,
            log=owner.log,
        )
        self._keeper = TemplateKeeper(loop, home, token, sockets, calls, self._on_renewed)
        self._shared = SharedTemplates(loop, home, token, shared_calls)
        #: When to look again for shared ones that nobody uses.
        self._shared_due: float | None = None

    def _close_in_keepers(self) -> None:
        self._owner.close_in_child()
        self._shared.close_in_child()

    def _close_in_shared(self) -> None:
        self._close_in_keepers()
        self._keeper.close_in_child()
        for sock in self._sockets.values():
            sock.close()

    # ------------------------------------------------------------------------------------- forks

    def start(self) -> None:
        """Fork the template of everything."""
        self._keeper.fork()

    def fork(self, process: Process) -> None:
        """Tell the template that is to fork a process."""
        if process.request.get("shared"):
            self._fork_shared(process)
        elif generation := self._keeper.tell(process.request):
            self._table.asked(process, generation)
        # Else it stays wanted, and the next template is told.

    def _fork_shared(self, process: Process) -> None:
        try:
            generation, has_to_load = self._shared.tell(process.request)
        except OSError as error:
            reason = f"cannot fork: {error.strerror}"
            self._owner.do(self._table.failed(process.process_id, 0, reason))
            return
        self._table.asked(process, generation)
        if has_to_load:
            names = ", ".join(process.request["shared"]["names"])
            what = f"loads {names} for all replicas"
            event = {"event": "preparing", "id": process.process_id, "what": what}
            self._owner.publish(event)

    def _on_renewed(self) -> None:
        self._owner.do([Fork(p) for p in self._table.all() if p.stage is Stage.WANTED])

    # -------------------------------------------------------------------------------------- news

    def on_report(self, message: Message) -> None:
        """A child of a template has reported something."""
        process_id, pid = str(message["id"]), int(message["pid"])
        match message["state"]:
            case "forked":
                self._keeper.tell({"op": "born", "pid": pid})
                self._owner.do(self._table.forked(process_id, pid))
            case "up":
                address = str(message["address"])
                self._owner.do(self._table.up(process_id, pid, address, time.monotonic()))
            case "failed":
                self._owner.do(self._table.failed(process_id, pid, str(message["reason"])))

    def read_reports(self) -> None:
        """Read what children have reported by now."""
        self._keeper.read_reports()
        self._shared.read_reports()

    def reaped(self, pid: int) -> None:
        """A child of the supervisor has ended that is in no table; perhaps it was a template."""
        self._keeper.reaped(pid)
        self._shared.reaped(pid)

    def gone(self, process: Process) -> None:
        """A process has ended: the template need not kill it any more."""
        if process.pid:
            self._keeper.tell({"op": "gone", "pid": process.pid})

    # -------------------------------------------------------------------------------------- time

    def due_at(self) -> float | None:
        """When something is to be done next; None: never."""
        times = [each for each in (self._keeper.due_at, self._shared_due) if each is not None]
        return min(times, default=None)

    def on_time(self, now: float) -> None:
        """Fork the template that is due, and end those that are not used any more."""
        if self._keeper.due_at is not None and self._keeper.due_at <= now:
            self._keeper.fork()
        if self._shared_due is not None and self._shared_due <= now:
            self.end_unused(now)

    def end_unused(self, now: float) -> None:
        """End those that hold something which no process uses any more."""
        living = [process.request for process in self._table.all()]
        self._shared_due = self._shared.end_unused(living, now)

    def processes(self) -> list[Message]:
        """Describe them, for status reports."""
        keeper = self._keeper
        template = {"name": "template", "pid": keeper.pid, "restarts": keeper.generation - 1}
        return [template, *self._shared.processes()]

    def kill(self) -> None:
        """End all of them for good."""
        self._keeper.kill()
        self._shared.kill()
