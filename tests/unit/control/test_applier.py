"""The controller's calls over a real connection."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from remora.config import DeploymentConfig
from remora.control.applier import Applier
from remora.control.checkpoint import CodeStore, Section
from remora.control.replica_control import connect_replica
from remora.control.stacks import SavedStacks
from remora.core import actions as act
from remora.core import events as ev
from remora.core.ranks import Ranks
from remora.errors import ConnectionLostError
from remora.testing import FakeEngine
from remora.transport.control import serve_control
from remora.types import ReplicaID

REPLICA = ReplicaID("default/Model#1")


@pytest.mark.parametrize("error", [ConnectionLostError("no database"), TimeoutError("no database")])
async def test_what_a_users_code_raises_is_an_answer_and_no_lost_call(
    tmp_path: Path, error: Exception
) -> None:
    async def fail(_body: bytes) -> bytes:
        raise error

    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "r.sock"))
    sock.listen()
    server = await serve_control(sock, {"reconfigure": fail, "check_health": fail})
    posted: asyncio.Queue[ev.AnyEvent] = asyncio.Queue()
    engine = FakeEngine()
    code, stacks = CodeStore(Section(engine)), SavedStacks(None)
    applier = Applier(engine, connect_replica, code, posted.put_nowait, stacks)
    address = f"unix:{tmp_path}/r.sock"

    applier.apply([act.Reconfigure(REPLICA, address, DeploymentConfig(), "key", Ranks(0, 0, 0))])
    answer = await asyncio.wait_for(posted.get(), 5)
    assert isinstance(answer, ev.Reconfigured)
    assert "no database" in answer.error

    applier.apply([act.CheckHealth(REPLICA, address, 5.0)])
    checked = await asyncio.wait_for(posted.get(), 5)
    assert isinstance(checked, ev.HealthChecked)
    assert "no database" in checked.error
    assert not checked.timed_out
    await applier.close()
    server.close()
