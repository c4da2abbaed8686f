"""The controller's calls over a real connection."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

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


class SlowLinks:
    """Connections that are opened when a test says so."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_open = asyncio.Event()
        self.links: list[Link] = []

    async def connect(self, address: str) -> Link:
        self.begun.set()
        await self.may_open.wait()
        self.links.append(Link())
        return self.links[-1]


class Link:
    """A connection on which every method answers nothing."""

    is_open = True

    async def call(self, *_args: object, **_options: object) -> None:
        assert self.is_open

    def stream(self, method: str, body: object, item: object) -> Any:
        raise AssertionError(method)

    def close(self) -> None:
        self.is_open = False


def applier_with(links: SlowLinks, posted: asyncio.Queue[ev.AnyEvent]) -> Applier:
    engine = FakeEngine()
    code, stacks = CodeStore(Section(engine)), SavedStacks(None)
    return Applier(engine, links.connect, code, posted.put_nowait, stacks)


async def test_calls_at_the_same_time_share_a_connection() -> None:
    links, posted = SlowLinks(), asyncio.Queue[ev.AnyEvent]()
    applier = applier_with(links, posted)
    applier.apply([act.Reconfigure(REPLICA, "unix:/r", DeploymentConfig(), "key", Ranks(0, 0, 0))])
    await links.begun.wait()
    asked = asyncio.ensure_future(applier.metrics(REPLICA, "unix:/r"))
    await asyncio.sleep(0)
    links.may_open.set()
    await asyncio.wait_for(asked, 5)
    await asyncio.wait_for(posted.get(), 5)
    assert len(links.links) == 1
    await applier.close()
    assert not links.links[0].is_open


async def test_a_connection_to_what_is_gone_meanwhile_is_closed() -> None:
    links, posted = SlowLinks(), asyncio.Queue[ev.AnyEvent]()
    applier = applier_with(links, posted)
    applier.apply([act.Reconfigure(REPLICA, "unix:/r", DeploymentConfig(), "key", Ranks(0, 0, 0))])
    await links.begun.wait()
    asked = asyncio.ensure_future(applier.metrics(REPLICA, "unix:/r"))
    await asyncio.sleep(0)
    applier.forget(REPLICA)
    links.may_open.set()
    with pytest.raises(ConnectionLostError, match="is gone"):
        await asyncio.wait_for(asked, 5)
    assert not any(link.is_open for link in links.links)
    await applier.close()


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
