"""What the supervisor makes of news that come in an awkward order."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remora.engine.boot import InstanceOptions
from remora.engine.claim import Claim
from remora.engine.doors import listen_unix
from remora.engine.local import supervisor
from remora.engine.local.supervisor import Supervisor
from remora.home import Home


class FakeKeeper:
    """Hands on reports when it is asked to."""

    def __init__(self, on_report: Callable[[dict[str, Any]], None]) -> None:
        self.reports: list[dict[str, Any]] = []
        self.strays: list[int] = []
        self._on_report = on_report

    def read_reports(self) -> None:
        while self.reports:
            self._on_report(self.reports.pop(0))

    def reaped(self, pid: int) -> None:
        self.strays.append(pid)

    def tell(self, message: dict[str, Any]) -> int:
        return 1


def test_a_process_that_ends_while_others_are_reaped_is_no_stray(
    remora_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.locate()
    claim = Claim.take(home)
    sockets: dict[str, socket.socket] = {"supervisor": listen_unix(home.supervisor_socket)}
    made = Supervisor(
        InstanceOptions(str(home.root), {}, "c:c", "p:p", 1.0), claim, sockets, "token"
    )
    keeper = FakeKeeper(made._templates.on_report)
    monkeypatch.setattr(made._templates, "_keeper", keeper)
    made._do(made._table.add({"op": "fork", "id": "a/d#1", "listen": str(home.root / "none")}))
    has_ended = supervisor._has_ended
    children: list[int] = []

    def fork_and_look(kind: int, pid: int) -> int:
        """The child is forked, reports and ends in the very moment of the first look."""
        if not children:
            children.append(os.fork())
            if children[0] == 0:
                os._exit(3)
            os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOWAIT)
            keeper.reports.append({"state": "forked", "id": "a/d#1", "pid": children[0]})
        # Whatever else the process of the tests has started is not ours to reap.
        return has_ended(os.P_PID, children[0] if kind == os.P_ALL else pid)

    monkeypatch.setattr(supervisor, "_has_ended", fork_and_look)
    made._reap()
    keeper.read_reports()
    assert keeper.strays == []
    assert made._table.all() == []
    for sock in (*sockets.values(), made._wake_read, made._wake_write):
        sock.close()
    claim.close()
