"""Replicas with packages and folders of their own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests import engines
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance
from tests.e2e.load import get
from tests.e2e.waiting import until_true
from tests.wheels import make_wheel

import remora as serve
from remora.build.graph import build
from remora.control.client import ControlClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(90)]


@serve.deployment
class Inside:
    """Says where it runs and what it can import."""

    def __init__(self, *modules: str) -> None:
        self.answers = [str(__import__(name).answer) for name in modules]

    def __call__(self) -> dict[str, Any]:
        return {
            "answers": self.answers,
            "python": sys.executable,
            "cwd": str(Path.cwd()),
            "parent": os.getppid(),
            "note": Path("note.txt").read_text() if Path("note.txt").exists() else "",
        }


def with_env(*modules: str, **runtime_env: Any) -> Any:
    return Inside.options(ray_actor_options={"runtime_env": runtime_env}).bind(*modules)


async def test_packages_are_installed_for_a_replica_alone(shared: Instance, tmp_path: Path) -> None:
    if engines.is_ray():
        pytest.importorskip("virtualenv", reason="Ray needs it for packages")
    make_wheel(tmp_path / "wheels", "tinyservice", "1.0", "answer = 'one'")
    make_wheel(tmp_path / "wheels", "tinyservice", "2.0", "answer = 'two'")

    def pip(version: str) -> dict[str, Any]:
        options = ["--no-index", "--no-deps", "--find-links", str(tmp_path / "wheels")]
        return {"packages": [f"tinyservice=={version}"], "pip_install_options": options}

    async with (
        shared.running(with_env("tinyservice", pip=pip("1.0")), "first") as first,
        shared.running(with_env("tinyservice", pip=pip("2.0")), "second") as second,
        shared.running(with_env(), "plain") as plain,
    ):
        one, two = (await get(first)).json, (await get(second)).json
        none = (await get(plain)).json
        assert (one["answers"], two["answers"]) == (["one"], ["two"])
        assert len({one["python"], two["python"], none["python"]}) == 3
        # Still a child of the supervisor, like every other process.
        parents = {one["parent"], two["parent"], none["parent"]}
        assert parents == {shared.pid} or engines.is_ray()
    # What was built is used again: the next replica need not wait for it.
    for wheel in (tmp_path / "wheels").iterdir():
        wheel.unlink()
    async with shared.running(with_env("tinyservice", pip=pip("1.0")), "again") as again:
        assert (await get(again)).json["python"] == one["python"]


@pytest.mark.local_only("Ray is given no folders of one node")
async def test_a_working_directory_is_as_it_was_at_the_deploy(
    shared: Instance, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "note.txt").write_text("first")
    (work / "ours_alone.py").write_text("answer = 'mine'")
    bound = with_env("ours_alone", working_dir=str(work))
    async with shared.running(bound, "work") as url:
        found = (await get(url)).json
        assert (found["note"], found["answers"]) == ("first", ["mine"])
        assert found["cwd"].startswith(str(shared.home.root))
        (work / "note.txt").write_text("second")
        assert (await get(url)).json["note"] == "first"
        before = await shared.pids("work")
        await shared.run(with_env("ours_alone", working_dir=str(work)), "work")
        assert (await get(url)).json["note"] == "second"
        assert not before & await shared.pids("work")


@pytest.mark.local_only("Ray is given no folders and files of one node")
async def test_modules_are_importable_by_their_names(shared: Instance, tmp_path: Path) -> None:
    package = tmp_path / "ourpackage"
    package.mkdir()
    (package / "__init__.py").write_text("answer = 'package'")
    (tmp_path / "ourmodule.py").write_text("answer = 'module'")
    wheel = make_wheel(tmp_path, "ourwheel", "1.0", "answer = 'wheel'")
    modules = [str(package), str(tmp_path / "ourmodule.py"), str(wheel)]
    bound = with_env("ourpackage", "ourmodule", "ourwheel", py_modules=modules)
    async with shared.running(bound, "modules") as url:
        assert (await get(url)).json["answers"] == ["package", "module", "wheel"]


@pytest.mark.local_only("Ray installs packages, and says itself what fails")
async def test_what_cannot_be_installed_fails_the_deploy_and_says_why(shared: Instance) -> None:
    options = {"packages": ["nosuchpackage==9"], "pip_install_options": ["--no-index"]}
    bound = with_env(pip=options)
    failed = bound._deployment.options(max_constructor_retry_count=1).bind()
    async with shared.deleting("failing"):
        app = await shared.deploy(failed, "failing", route=None)
        assert app.status == "DEPLOY_FAILED"
        assert "its environment could not be built: pip ended with status 1" in app.message
        assert "No matching distribution found for nosuchpackage==9" in app.message
        assert "environment-packages-" in app.message


@pytest.mark.local_only("Ray installs packages")
async def test_a_controller_that_is_killed_while_packages_are_installed_begins_anew(
    start_instance: StartInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, go = tmp_path / "called", tmp_path / "go"
    os.mkfifo(go)
    uv = tmp_path / "uv"
    # Waits until the test writes into the pipe.
    uv.write_text(f"#!/bin/sh\necho $$ >> {called}\nread line < {go}\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    instance = start_instance()
    async with ControlClient(instance.home) as client:
        await client.deploy([build(with_env(uv=["anything"]), "slow", "/slow")])

    def calls() -> list[int]:
        return [int(line) for line in called.read_text().split()] if called.exists() else []

    await until_true(calls, "uv is called")
    status = await instance.status()
    assert "installs 1 package(s) with uv for it; see" in status.applications["slow"].message
    os.kill(status.controller_pid, signal.SIGKILL)
    await until_true(lambda: calls()[1:], "uv is called again")
    first, _ = calls()
    assert not Path(f"/proc/{first}").exists()
    go.write_text("on\n")
    await instance.wait(lambda now: now.applications["slow"].status == "RUNNING", "it runs")
