"""What is done to an instance, seen against a controller that answers what the test says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest

from remora.engine.launch import Owner
from remora.errors import InstanceError
from remora.home import Home
from remora.instance import Instance
from remora.wire.control import ApplicationSpec, ApplicationStatus, InstanceStatus

T = TypeVar("T")

#: Above what the kernel hands out.
NO_PROCESS = 2**22 + 1


class FakeController:
    """Takes the place of the client: answers with reports that were prepared."""

    def __init__(self, before: InstanceStatus, after: Sequence[InstanceStatus | Exception]) -> None:
        self._before = before
        self._after = after
        self.calls: list[str] = []

    def __call__(self, home: Home) -> FakeController:
        return self

    async def __aenter__(self) -> FakeController:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def status(self) -> InstanceStatus:
        return self._before

    async def deploy(self, specs: Sequence[ApplicationSpec]) -> None:
        self.calls.append("deploy")

    async def watch(self) -> AsyncGenerator[InstanceStatus, None]:
        for one in self._after:
            if isinstance(one, Exception):
                raise one
            yield one


def report(*apps: tuple[str, int, float]) -> InstanceStatus:
    """The status of an instance that has these applications (name, revision, time)."""
    return InstanceStatus(
        home="",
        http_url="",
        controller_pid=2,
        supervisor_pid=1,
        proxies=(),
        applications={
            name: ApplicationStatus(
                name=name,
                status="RUNNING",
                message="",
                route_prefix="/",
                last_deployed_time_s=time_s,
                deployments={},
                revision=revision,
            )
            for name, revision, time_s in apps
        },
    )


def instance_of(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    before: InstanceStatus,
    *after: InstanceStatus | Exception,
    pid: int = NO_PROCESS,
) -> Instance:
    monkeypatch.setattr("remora.control.client.ControlClient", FakeController(before, after))
    return Instance(Home(tmp_path), None, Owner(pid, ""))


SPEC = ApplicationSpec(name="a", route_prefix="/", ingress="D", deployments=())


async def first(reports: AsyncGenerator[T, None]) -> T:
    async with asyncio.timeout(5), aclosing(reports):
        return await anext(reports)


async def test_a_deploy_reports_only_what_it_deployed_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = report(("a", 1, 10.0), ("b", 1, 10.0)), report(("a", 2, 11.0), ("b", 2, 11.0))
    instance = instance_of(monkeypatch, tmp_path, old, old, new)
    async with aclosing(instance.deploy([SPEC])) as reports:
        assert [list(one) for one in [await anext(reports), await anext(reports)]] == [[], ["a"]]


async def test_an_application_that_was_deleted_before_the_deploy_counts_from_one_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = instance_of(monkeypatch, tmp_path, report(("a", 3, 10.0)), report(("a", 1, 11.0)))
    assert list(await first(instance.deploy([SPEC]))) == ["a"]


async def test_a_deploy_on_an_instance_that_ends_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = InstanceError("there is no such socket")
    instance = instance_of(monkeypatch, tmp_path, report(), report(), gone)
    with pytest.raises(InstanceError, match="ended while a came up"):
        async for _ in instance.deploy([SPEC]):
            pass


async def test_a_watch_ends_with_the_instance_and_fails_when_only_the_controller_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = InstanceError("there is no such socket")
    ended = instance_of(monkeypatch, tmp_path, report(), report(), gone)
    assert len([one async for one in ended.watch()]) == 1
    monkeypatch.setattr("remora.instance.EXIT_LIMIT_S", 0.01)
    runs = instance_of(monkeypatch, tmp_path, report(), report(), gone, pid=os.getpid())
    with pytest.raises(InstanceError, match="no such socket"):
        async for _ in runs.watch():
            pass


async def test_waiting_for_a_process_that_is_gone_returns_at_once(tmp_path: Path) -> None:
    done = await asyncio.create_subprocess_exec("true")
    await Instance(Home(tmp_path), None, Owner(done.pid, "")).wait_gone()
    assert await done.wait() == 0
    await Instance(Home(tmp_path), None, Owner(NO_PROCESS, "")).wait_gone()
