"""In which order an instance ends. Pure.

Asked to end: first the proxies, which take no more connections and finish what they have; then
the replicas, which finish what they work on; the controller last. When the owning program is gone
nobody waits for an answer, and all are told at once. What is left at the deadline is killed.
"""

from __future__ import annotations

from dataclasses import dataclass

from remora.engine.local.processes import Order, Process, ProcessTable
from remora.engine.local.system_processes import is_proxy


def _stage(process: Process) -> int:
    if not process.system:
        return 1
    return 0 if is_proxy(process.process_id) else 2


@dataclass
class ShutdownOrder:
    """The end of an instance, under way.

    Attributes:
        kill_at: when what is left is killed.
        at_once: True: nobody waits for anybody.
    """

    kill_at: float
    at_once: bool

    def hurry(self, kill_at: float, at_once: bool) -> None:
        """Be asked again: the earlier deadline holds."""
        self.kill_at = min(self.kill_at, kill_at)
        self.at_once = self.at_once or at_once

    def step(self, table: ProcessTable, now: float) -> list[Order]:
        """Tell those to end whose turn it is."""
        left = table.all()
        overdue = self.kill_at <= now
        if left and not (self.at_once or overdue):
            turn = min(map(_stage, left))
            left = [process for process in left if _stage(process) == turn]
        timeout_s = max(0.0, self.kill_at - now)
        orders = [o for p in left for o in table.stop(p.process_id, timeout_s, now)]
        if overdue:
            orders += table.give_up_unforked("stopped before it was started")
            # Asked again only if something is left, and then not in a busy loop.
            self.kill_at = now + 1.0
        return orders

    def done(self, table: ProcessTable) -> bool:
        """Everything has ended."""
        return len(table) == 0
