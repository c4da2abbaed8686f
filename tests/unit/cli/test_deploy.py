"""How a deploy is followed: its own applications, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from remora.cli import deploy
from remora.cli.deploy import config_text, follow, undeclared
from remora.cli.errors import CommandError, UsageError
from remora.config_file.read import load
from remora.home import Home
from remora.instance import Instance
from remora.wire.control import ApplicationStatus, InstanceStatus


def application(name: str, status: str, release: int, message: str = "") -> ApplicationStatus:
    return ApplicationStatus(
        name=name,
        status=status,
        message=message,
        route_prefix=f"/{name}",
        last_deployed_time_s=0.0,
        deployments={},
        release=release,
    )


def status_of(*apps: ApplicationStatus) -> InstanceStatus:
    return InstanceStatus(
        home="/nowhere",
        http_url="http://127.0.0.1:8000",
        controller_pid=1,
        supervisor_pid=1,
        proxies=(),
        applications={app.name: app for app in apps},
    )


def reports(*steps: tuple[ApplicationStatus, ...]) -> Instance:
    """An instance that tells one status after another."""

    class Reporting:
        home = Home.locate("/nowhere")

        async def watch(self) -> AsyncGenerator[InstanceStatus, None]:
            for apps in steps:
                yield status_of(*apps)

    return cast(Instance, Reporting())


async def test_it_ends_when_all_of_its_applications_have_settled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    instance = reports(
        (application("a", "DEPLOYING", 3, "Its code is being imported."),),
        (application("a", "RUNNING", 3), application("b", "DEPLOYING", 2)),
    )
    await follow(instance, 3, ["a"])
    told = capsys.readouterr()
    assert told.out == "Application 'a' is ready at http://127.0.0.1:8000/a\n"
    assert told.err == "a: Its code is being imported.\n"


async def test_it_waits_as_long_as_it_may_and_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Hanging:
        joined = False
        home = Home.locate("/nowhere")

        async def status(self) -> InstanceStatus:
            return status_of()

        async def submit(self, _request: object) -> int:
            return 7

        async def watch(self) -> AsyncGenerator[InstanceStatus, None]:
            await asyncio.Event().wait()
            yield  # type: ignore[misc]

    file = tmp_path / "serve.yaml"
    file.write_text("applications: [{import_path: 'a:b'}]\n")
    options = deploy.DeployOptions(str(file), (), app_dir=tmp_path)
    monkeypatch.setattr("remora.cli.deploy.find", Hanging)
    said = r"Release 7 is not in effect after 0\.01 s, and goes on\."
    with pytest.raises(CommandError, match=said) as caught:
        await asyncio.to_thread(deploy.deploy, options, wait=True, timeout_s=0.01)
    assert caught.value.status == 1
    with pytest.raises(UsageError, match="exclude each other"):
        deploy.deploy(options, wait=False, timeout_s=0.01)


async def test_one_that_fails_is_told_with_its_traceback() -> None:
    instance = reports(
        (application("a", "RUNNING", 3), application("b", "DEPLOY_FAILED", 3, "Traceback: x"))
    )
    with pytest.raises(CommandError, match="1 of 2 applications") as caught:
        await follow(instance, 3, ["a", "b"])
    assert "Traceback: x" in caught.value.user_traceback


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ((application("a", "RUNNING", 4),), "Release 3 was replaced by release 4"),
        ((), "was deleted while release 3 came up"),
        ((application("a", "DELETING", 3),), "was deleted while release 3 came up"),
    ],
)
async def test_what_somebody_else_has_replaced_is_not_waited_for(
    others: tuple[ApplicationStatus, ...], said: str
) -> None:
    instance = reports((application("a", "DEPLOYING", 3),), others)
    with pytest.raises(CommandError, match=said):
        await follow(instance, 3, ["a"])


async def test_an_instance_that_ends_meanwhile_is_told() -> None:
    with pytest.raises(CommandError, match="has ended"):
        await follow(reports(), 3, ["a"])
    with pytest.raises(CommandError, match="has ended"):
        await follow(reports((application("a", "DEPLOYING", 3),)), 3, ["a"])


def test_what_a_config_does_not_name_any_more_is_told() -> None:
    def declared(name: str, status: str = "RUNNING") -> ApplicationStatus:
        return msgspec.structs.replace(application(name, status, 1), source="declarative")

    apps = (declared("kept"), declared("gone"), declared("going", "DELETING"))
    of_a_program = application("mine", "RUNNING", 1)
    assert undeclared(status_of(*apps, of_a_program), ["kept", "new"]) == ["gone"]


def test_what_is_printed_of_a_config_is_a_config_file_again(tmp_path: Path) -> None:
    given = [
        {"name": "a", "route_prefix": "/a", "import_path": "server:app", "args": {"n": "on"}},
        {"name": "b", "import_path": "server:app", "deployments": [{"name": "X"}]},
    ]
    file = tmp_path / "saved.yaml"
    file.write_text(config_text(map(msgspec.json.encode, given), 50.0))
    config = load(file)
    assert [app.given for app in config.applications] == given
    assert config.target_capacity == 50
    file.write_text(config_text(map(msgspec.json.encode, given[:1]), None))
    config = load(file)
    assert [app.given for app in config.applications] == given[:1]
    assert config.target_capacity is None
