"""How instances begin and end: with a script, with a command, by themselves, and never halfway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests import engines
from tests.e2e.conftest import StartCommand
from tests.e2e.instances import Command
from tests.e2e.load import get, load
from tests.e2e.processes import is_alive, marked, title
from tests.e2e.waiting import until_async, until_true

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

#: Everything of an instance is to be gone this long after the script that owns it.
GONE_S = 2.0

APP = """
import remora as serve

@serve.deployment
class Hello:
    async def __call__(self, request):
        return "one"

app = Hello.bind()
"""

START = """
import sys, time
import remora as serve
from hello import app
serve.start(http_options={"port": 0})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(APP)
    return tmp_path


@pytest.fixture
def script(command: StartCommand, folder: Path) -> Any:
    """Return a function that runs a script; it starts with `START` unless it says otherwise."""

    def run(text: str, head: str = START, **options: Any) -> Command:
        path = folder / f"script{len(list(folder.glob('script*')))}.py"
        path.write_text(head + text)
        return command(sys.executable, str(path), **options)

    return run


def status_json(home: Path, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "remora", "status", "--json"],
        env={**os.environ, "REMORA_HOME": str(home)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=engines.patient(20),
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def gone(command: Command) -> None:
    """Nothing that the command started is alive after `GONE_S`."""
    await until_true(lambda: not marked(command.mark), "everything is gone", GONE_S)


# --------------------------------------------------------------------------------- with a script


async def test_ctrl_c_in_a_blocking_script_ends_the_instance(script: Any, home: Path) -> None:
    run = script("serve.run(app, blocking=True)\n")
    url = await answering(run, home)
    # It serves a moment before the script knows; a Ctrl-C in between is one during the deploy.
    run.wait_output("is ready")
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    await gone(run)
    assert (await get(url)).status == 0
    assert not list((home / "run").glob("*.sock"))


async def test_an_instance_ends_with_its_script(script: Any, home: Path) -> None:
    run = script('serve.run(app)\nprint(serve.status().applications["default"].status)\n')
    assert run.wait() == 0, run.output
    assert "RUNNING" in run.output
    await gone(run)


async def test_an_instance_ends_with_a_script_that_fails(script: Any, home: Path) -> None:
    run = script("serve.run(app)\nraise SystemExit(7)\n")
    assert run.wait() == 7, run.output
    await gone(run)


async def test_an_instance_ends_with_a_script_that_is_killed(script: Any, home: Path) -> None:
    run = script("serve.run(app, blocking=True)\n")
    await answering(run, home)
    began = time.monotonic()
    run.process.kill()
    await gone(run)
    assert time.monotonic() - began < engines.patient(GONE_S)
    # And the next one starts in the same folder.
    again = script("serve.run(app)\nprint('again')\n")
    assert again.wait() == 0, again.output
    assert "again" in again.output


async def test_an_application_of_a_script_survives_it_in_an_instance_that_ran_before(
    script: Any, remora: StartCommand, home: Path, folder: Path
) -> None:
    start = remora("start", "--http-port", "0")
    assert start.wait() == 0, start.output
    run = script(
        "print(serve.run(app).options(method_name='__call__'))\n",
        START.replace("serve.start", "# "),
    )
    assert run.wait() == 0, run.output
    status = status_json(home, folder)
    assert status["applications"]["default"]["status"] == "RUNNING"
    assert (await get(status["http_url"])).body == b"one"
    require_titles(status)
    stop = remora("shutdown", "-y")
    assert stop.wait() == 0, stop.output
    await gone(start)
    # Nothing of it is in the way of the next.
    again = remora("start", "--http-port", "0")
    assert again.wait() == 0, again.output
    assert remora("shutdown", "-y").wait() == 0
    await gone(again)


def require_titles(status: dict[str, Any]) -> None:
    """`ps` says what each process is."""
    replica = status["applications"]["default"]["deployments"]["Hello"]["replicas"][0]
    supervisor = "remora: agent" if engines.is_ray() else "remora: supervisor"
    assert title(status["supervisor_pid"]) == supervisor
    assert title(status["controller_pid"]) == "remora: controller"
    assert title(status["proxies"][0]["pid"]) == "remora: proxy"
    assert title(replica["pid"]) == f"remora: replica {replica['replica_id']}"


async def test_run_works_twice_from_a_thread_and_in_a_loop(script: Any, home: Path) -> None:
    run = script(
        """
import asyncio, threading
from hello import Hello

@serve.deployment
class Count:
    def __init__(self, start): self.number = start
    async def add(self, n): return self.number + n

handle = serve.run(Count.bind(1), name="count", route_prefix="/count")
assert handle.add.remote(1).result() == 2
handle = serve.run(Count.bind(10), name="count", route_prefix="/count")
assert handle.add.remote(1).result() == 11

thread = threading.Thread(target=serve.run, args=(Count.bind(100),), kwargs={"name": "thread", "route_prefix": "/t"})
thread.start(); thread.join()
assert serve.get_app_handle("thread").add.remote(1).result() == 101

async def main():
    handle = serve.run(Count.bind(1000), name="loop", route_prefix="/l")
    assert await handle.add.remote(1) == 1001
    assert await serve.get_app_handle("thread").add.remote(2) == 102
    serve.delete("count")
asyncio.run(main())
assert set(serve.status().applications) == {"thread", "loop"}, serve.status()
serve.shutdown()
serve.shutdown()
assert not serve.status().applications
serve.start(http_options={"port": 0})
assert serve.run(Count.bind(5)).add.remote(1).result() == 6
print("all is well")
"""
    )
    assert run.wait(30) == 0, run.output
    assert "all is well" in run.output
    assert "Traceback" not in run.output
    await gone(run)


# ------------------------------------------------------------------------------ with a command


async def test_remora_run_ends_in_good_order(remora: StartCommand, folder: Path) -> None:
    run = remora("run", "hello:app", "--port", "0")
    url = run.wait_url()
    assert (await get(url)).body == b"one"
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    await gone(run)


async def test_sigterm_ends_remora_run_as_ctrl_c_does(remora: StartCommand, folder: Path) -> None:
    run = remora("run", "hello:app", "--port", "0")
    run.wait_url()
    run.process.terminate()
    assert run.wait() == 0, run.output
    await gone(run)


async def test_killing_remora_run_ends_its_instance(remora: StartCommand, folder: Path) -> None:
    run = remora("run", "hello:app", "--port", "0")
    run.wait_url()
    run.process.kill()
    await gone(run)


@pytest.mark.local_only("what it kills, the agent on Ray, is started again there")
async def test_remora_run_says_when_its_instance_was_killed(
    remora: StartCommand, folder: Path
) -> None:
    run = remora("run", "hello:app", "--port", "0")
    run.wait_url()
    supervisor = status_json(run.home.root, folder)["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    assert run.wait() == 1, run.output
    assert f"was killed: its supervisor (pid {supervisor})" in run.output
    await gone(run)


async def test_an_edit_is_served_without_a_lost_request_and_a_broken_one_is_told(
    remora: StartCommand, folder: Path
) -> None:
    run = remora("run", "hello:app", "--port", "0", "--reload")
    url = run.wait_url()
    run.wait_output("Watching")
    async with load(url) as traffic:
        await traffic.more(20)
        edit(folder, APP.replace('"one"', '"two"'))

        async def two() -> bool:
            return traffic.answers[-1].body == b"two"

        await until_async(two, "the edited version answers")
        edit(folder, APP.replace("return", "retrun"))
        run.wait_output("SyntaxError")
        run.wait_output("keeps serving")
        edit(folder, APP.replace('"one"', '"three"'))

        async def three() -> bool:
            return traffic.answers[-1].body == b"three"

        await until_async(three, "the repaired version answers")
    assert traffic.failures == []
    assert {a.body for a in traffic.answers} == {b"one", b"two", b"three"}
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 0, run.output


def edit(folder: Path, text: str) -> None:
    """Save as editors do: all at once, under the old name."""
    new = folder / "hello.py.new"
    new.write_text(text)
    new.rename(folder / "hello.py")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["version"], 0),
        (["--help"], 0),
        (["status"], 1),
        (["shutdown", "-y"], 0),
        (["run"], 2),
        (["run", "no colon"], 2),
        (["run", "hello:app", "--port", "99999"], 2),
        (["rum"], 2),
    ],
)
def test_exit_statuses(remora: StartCommand, folder: Path, words: list[str], status: int) -> None:
    command = remora(*words)
    assert command.wait() == status, command.output
    assert "Traceback" not in command.output


async def answering(run: Command, home: Path) -> str:
    """Wait until the script's application answers; returns the URL."""
    from remora.engine.claim import find_owner
    from remora.home import Home

    async def answers() -> str:
        assert run.process.poll() is None, run.output
        owner = find_owner(Home(home))
        if owner is None or not owner.http_url:
            return ""
        return owner.http_url if (await get(owner.http_url)).status == 200 else ""

    url = await until_async(answers, "the script's application answers", 20.0)
    assert is_alive(run.process.pid)
    return url
