"""What replicas log and print: where it is, whose it is, and that a crash does not take it along."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from tests.e2e.instances import REMORA, Command, Instance
from tests.e2e.load import Answer, ask, client
from tests.e2e.test_script import lines_of, run_script
from tests.e2e.waiting import until, until_async, until_true

import remora as serve
from remora.observe.log_files import is_log_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


@serve.deployment
class Talker:
    """Says what it is told to, in every way."""

    def __init__(self, other: Any = None) -> None:
        self.other = other
        print("constructed")

    async def __call__(self, request: Request) -> str:
        word = request.query_params.get("say", "")
        print(f"printed {word}")
        print(f"to stderr {word}", file=sys.stderr)
        logging.getLogger("any.name").info("logged %s", word)
        logging.getLogger("remora").debug("debugged %s", word)
        if self.other is not None:
            return str(await self.other.deeper.remote(word))
        return str(os.getpid())

    def deeper(self, word: str) -> str:
        print(f"deeper {word}")
        return word

    async def child(self) -> None:
        subprocess.run(["echo", "from a child"], check=True)  # noqa: ASYNC221

    async def crash(self) -> None:
        os.write(2, b"native last words\n")
        ctypes.string_at(0)


def logs_of(instance: Instance, app: str, deployment: str = "") -> str:
    """All that replicas of an application have logged."""
    files = [p for p in instance.home.logs.glob("*.log") if is_log_of(p.name, app, deployment)]
    return "".join(path.read_text() for path in sorted(files))


def logs_command(words: Sequence[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REMORA, "logs", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | env,
    )


async def say(url: str, word: str, request_id: str) -> Answer:
    async with client() as session:
        return await ask(session, f"{url}?say={word}", headers={"x-request-id": request_id})


async def seen(instance: Instance, app: str, *words: str) -> str:
    """Wait until the replicas of `app` have logged all of that; returns what they have."""
    await until_true(lambda: all(word in logs_of(instance, app) for word in words), f"{words}")
    return logs_of(instance, app)


async def test_prints_and_logs_of_any_logger_carry_the_ids_of_their_request(
    shared: Instance,
) -> None:
    async with shared.running(Talker.bind(Talker.options(name="Inner").bind()), "ids") as url:
        assert (await say(url, "fish", "req-77")).status == 200
        text = await seen(shared, "ids", "logged fish", "deeper fish", "to stderr fish")
        outer, inner = logs_of(shared, "ids", "Talker"), logs_of(shared, "ids", "Inner")
    lines = [line for line in text.splitlines() if "fish" in line]
    assert len(lines) == 4
    assert all(" req-77 -- " in line for line in lines)
    assert sum(line.startswith("STDOUT ") for line in lines) == 2
    assert sum(line.startswith("STDERR ") for line in lines) == 1
    assert " ids_Talker " in outer
    assert " ids_Inner " in inner
    assert "deeper fish" in inner
    # Not of a request.
    constructed = next(line for line in outer.splitlines() if "constructed" in line)
    assert len(constructed.partition(" -- ")[0].split()) == 5
    # One line for each request is at the front door, unless somebody asks for more.
    assert "CALL" not in text


async def test_a_new_config_holds_at_once_and_nothing_restarts(shared: Instance) -> None:
    url = await shared.run(Talker.bind(), "live")
    async with shared.deleting("live"):
        before = await shared.pids("live")
        assert (await say(url, "one", "a")).status == 200
        await seen(shared, "live", "logged one")
        changed = Talker.options(logging_config={"encoding": "JSON", "log_level": "DEBUG"})
        await shared.run(changed.bind(), "live")
        assert await shared.pids("live") == before
        assert (await say(url, "two", "b")).status == 200
        text = await seen(shared, "live", "debugged two", "GET '/live' OK")
        less = Talker.options(logging_config={"log_level": "ERROR", "enable_access_log": False})
        await shared.run(less.bind(), "live")
        assert (await say(url, "three", "c")).status == 200
        rest = (await seen(shared, "live", "printed three")).removeprefix(text)
        assert await shared.pids("live") == before
    assert "debugged one" not in text
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    two = [each for each in found if each.get("request_id") == "b"]
    assert {each["message"].partition(" two")[0] for each in two} >= {
        "printed",
        "logged",
        "debugged",
    }
    assert {each["replica"].partition("#")[0] for each in two} == {"live/Talker"}
    assert {each["application"] for each in two} == {"live"}
    assert "logged three" not in rest
    assert "GET" not in rest


@pytest.mark.local_only("what does not go through Python is in Ray's logs")
async def test_a_crash_does_not_take_its_last_words_along(shared: Instance) -> None:
    async with shared.running(Talker.bind(), "crash"):
        handle = shared.handle("Talker", "crash")
        await handle.child.remote()
        with pytest.raises(Exception, match="died"):
            await handle.crash.remote()
        text = await seen(shared, "crash", "native last words", "Fatal Python error", "in crash")
    assert "from a child\n" in text


async def test_logs_of_a_deployment_may_be_elsewhere(shared: Instance, tmp_path: Path) -> None:
    elsewhere = Talker.options(logging_config={"logs_dir": str(tmp_path / "own")})
    async with shared.running(elsewhere.bind(), "elsewhere") as url:
        assert (await say(url, "there", "r")).status == 200
        # By a link in the usual place.
        await seen(shared, "elsewhere", "logged there")
        (path,) = (tmp_path / "own").iterdir()
        assert "constructed" in path.read_text()


async def test_a_folder_that_cannot_be_written_fails_the_deploy(
    shared: Instance, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    bad = Talker.options(
        logging_config={"logs_dir": str(tmp_path / "file" / "logs")}, max_constructor_retry_count=1
    )
    app = await shared.deploy(bad.bind(), "bad", route=None)
    await shared.delete("bad")
    assert app.status == "DEPLOY_FAILED"
    assert f"no log can be written in {tmp_path}/file/logs" in app.deployments["Talker"].message


async def test_the_command_shows_what_was_logged_for_a_request(
    shared: Instance, tmp_path: Path
) -> None:
    async with shared.running(Talker.bind(), "shown") as url:
        for word in ("one", "two"):
            assert (await say(url, word, f"req-{word}")).status == 200
        await seen(shared, "shown", "logged two")
        access = shared.home.logs.glob("access-*.log")
        paths = list(access)
        await until_true(lambda: any("req-two" in p.read_text() for p in paths), "access log")
        env = {"REMORA_HOME": str(shared.home.root)}

        def shown(*words: str) -> str:
            done = logs_command(words, env)
            assert done.returncode == 0, done.stderr
            return done.stdout

        of_request = shown("--request", "req-two")
        assert of_request.count("req-two") == of_request.count("\n") == 4
        assert "req-one" in shown("shown/Talker")
        assert shown("shown", "--lines", "1").count("\n") == 1
        assert shown("shown", "--since", "2999-01-01") == ""
        words = [REMORA, "logs", "shown", "-f", "--lines", "0"]
        following = Command(words, tmp_path, shared.home.root)
        try:

            async def followed() -> bool:
                # Until it looks: what was logged before that is not asked for.
                await say(url, "more", "req-f")
                return "printed more" in following.output

            await until_async(followed, "the command follows")
        finally:
            following.end()


def test_a_command_for_nothing_says_so(tmp_path: Path) -> None:
    env = {"REMORA_HOME": str(tmp_path)}
    for words, message in (
        (["nothing"], "There are no logs of 'nothing' in"),
        (["--since", "soon"], "'soon' is no time"),
    ):
        done = logs_command(words, env)
        assert done.returncode == 1
        assert message in done.stderr


def test_a_script_shows_what_its_replicas_print(remora_home: Path) -> None:
    done = run_script(
        """
import os, subprocess
@serve.deployment
class Loud:
    def __call__(self):
        print("printed in a replica")
        subprocess.run(["echo", "said by a child"])
        return "fine"
print(serve.run(Loud.bind()).remote().result())
""",
        remora_home,
    )
    assert lines_of(done) == ["fine"]
    assert done.stderr.count("printed in a replica") == 1
    assert "said by a child\n" in done.stderr


def test_a_config_of_the_instance_holds_for_all_its_processes(remora_home: Path) -> None:
    done = run_script(
        """
serve.shutdown()
serve.start(http_options={"port": 0}, logging_config={"encoding": "JSON", "log_level": "WARNING"})
import logging, os
@serve.deployment(health_check_period_s=0.1)
class Loud:
    def __call__(self):
        logging.warning("of a replica")
        logging.info("too little")
    def die(self): os._exit(3)
handle = serve.run(Loud.bind())
handle.remote().result()
try: handle.die.remote().result()
except Exception as error: print(type(error).__name__)
try: serve.start(logging_config={"encoding": "TEXT"})
except ValueError as error: print("runs already" in str(error))
""",
        remora_home,
    )
    assert lines_of(done)[-1] == "True"
    logs = [path for path in (remora_home / "logs").glob("*.log") if path.name != "instance.log"]
    until(lambda: "of a replica" in "".join(p.read_text() for p in logs), "it is written")
    found = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    by_component = {each["component_name"] for each in found}
    assert by_component >= {"controller", "default_Loud"}
    assert not any("too little" in each["message"] for each in found)
