"""Scripts that call the public functions: what they print, how they end, what they leave behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests import engines
from tests.e2e.waiting import until

from remora.engine.launch import find_owner
from remora.home import Home

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

HEAD = """
import asyncio, sys
import remora as serve

@serve.deployment
class Doubler:
    async def __call__(self, x): return x * 2
    def where(self): return serve.get_replica_context().app_name
    async def count(self, n):
        for i in range(n): yield i

@serve.deployment
class Front:
    def __init__(self, doubler): self.doubler = doubler
    async def __call__(self, x): return await self.doubler.remote(self.doubler.remote(x))
    def plain(self, x): return self.doubler.remote(x).result()
    async def other_app(self, name): return await serve.get_app_handle(name).remote(1)
    async def sibling(self): return await serve.get_deployment_handle("Doubler").remote(4)

@serve.deployment(max_constructor_retry_count=1)
class Broken:
    def __init__(self): raise ValueError("no model in here")

serve.start(http_options={"port": 0}, resources={"seat": 1})
"""


def run_script(body: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own; whatever it started must end with it."""
    script = home / "script.py"
    script.write_text(HEAD + body)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=engines.patient(50),
    )
    until(lambda: find_owner(Home(home)) is None, "the instance ended with its script")
    return done


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_script_deploys_calls_and_ends(remora_home: Path) -> None:
    done = run_script(
        """
handle = serve.run(Front.bind(Doubler.bind()))
print(handle.remote(3).result(), handle.plain.remote(3).result(), handle.sibling.remote().result())
doubler = serve.get_deployment_handle("Doubler", "default")
print(list(doubler.options(stream=True).count.remote(3)), doubler.where.remote().result())
print(serve.status().applications["default"].status.value)
""",
        remora_home,
    )
    assert lines_of(done) == ["12 6 8", "[0, 1, 2] default", "RUNNING"]


def test_everything_works_inside_a_running_loop(remora_home: Path) -> None:
    done = run_script(
        """
async def notebook():
    handle = serve.run(Front.bind(Doubler.bind()), name="a", route_prefix="/a")
    print(await handle.remote(3), await serve.get_app_handle("a").plain.remote(2))
    stream = serve.get_deployment_handle("Doubler", "a").options(stream=True).count.remote(2)
    print([item async for item in stream])
    serve.delete("a")
    print(list(serve.status().applications))
    await serve.shutdown_async()
    print(serve.status().proxies)
asyncio.run(notebook())
""",
        remora_home,
    )
    assert lines_of(done) == ["12 4", "[0, 1]", "[]", "{}"]


def test_applications_call_each_other(remora_home: Path) -> None:
    done = run_script(
        """
front, _ = serve.run_many([
    serve.RunTarget(Front.bind(Doubler.bind()), "front", "/front"),
    serve.RunTarget(Doubler.bind(), "doubler", None),
])
print(front.other_app.remote("doubler").result())
for wrong in (lambda: serve.get_app_handle("dubler"),
              lambda: serve.get_deployment_handle("Nothing", "front")):
    try:
        wrong()
    except Exception as error:
        print(type(error).__name__, "Did you mean 'doubler'?" in str(error))
""",
        remora_home,
    )
    assert lines_of(done) == ["2", "NotDeployedError True", "NotDeployedError False"]


def test_a_deploy_that_fails_shows_the_users_traceback_once(remora_home: Path) -> None:
    done = run_script("serve.run(Broken.bind())\n", remora_home)
    assert done.returncode == 1
    last = done.stderr[done.stderr.rindex("remora.errors.DeployError") :]
    assert "Deploying application default failed" in last
    assert last.count("ValueError: no model in here") == 1


def test_a_deploy_that_is_rolled_back_raises_and_what_worked_serves(remora_home: Path) -> None:
    done = run_script(
        """
handle = serve.run(Doubler.options(name="Model").bind())
try:
    serve.run(Broken.options(name="Model", rollback="auto").bind())
except Exception as error:
    print(type(error).__name__, "was rolled back" in str(error), "no model in here" in str(error))
print(handle.remote(2).result(), serve.status().applications["default"].status)
""",
        remora_home,
    )
    assert lines_of(done) == ["DeployError True True", "4 RUNNING"]


def test_options_that_differ_from_the_running_instance_are_refused(remora_home: Path) -> None:
    done = run_script(
        """
try:
    serve.start(http_options={"port": 1})
except ValueError as error:
    print("port" in str(error) and "runs already" in str(error))
serve.start()
""",
        remora_home,
    )
    assert lines_of(done) == ["True"]


def test_a_blocking_run_ends_with_ctrl_c(remora_home: Path) -> None:
    script = remora_home / "script.py"
    script.write_text(
        "import logging, sys\nlogging.basicConfig(stream=sys.stdout, level=logging.INFO)\n"
        + HEAD
        + "serve.run(Doubler.bind(), blocking=True)\nprint('after')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        # The last thing that is said before it stays.
        assert any("Application 'default' runs" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=engines.patient(30))
        assert out.splitlines()[-1] == "after"
    finally:
        process.kill()
        process.wait()
    assert find_owner(Home(remora_home)) is None


def test_a_slow_deploy_says_why_it_waits_and_a_blocking_one_where_it_is(remora_home: Path) -> None:
    done = run_script(
        """
import remora.build.deploying, signal
signal.signal(signal.SIGALRM, signal.default_int_handler)

class Watched:
    "Interrupts this program a moment after it has said what the test waits for."
    def __init__(self, file): self.file = file
    def flush(self): self.file.flush()
    def write(self, text):
        self.file.write(text)
        if "not ready after" in text or "is ready at" in text:
            signal.setitimer(signal.ITIMER_REAL, 0.2)

sys.stdout, sys.stderr = Watched(sys.stdout), Watched(sys.stderr)
remora.build.deploying.SLOW_AFTER_S = 60.0
seated = Doubler.options(ray_actor_options={"resources": {"seat": 1}}).bind()
serve.run(seated, name="first", route_prefix=None)
remora.build.deploying.SLOW_AFTER_S = 1.0
try:
    serve.run(seated, name="second", route_prefix=None)
except KeyboardInterrupt:
    serve.delete("second")
print("blocking", flush=True)
remora.build.deploying.SLOW_AFTER_S = 60.0
serve.run(Doubler.bind(), blocking=True)
""",
        remora_home,
    )
    assert "ready at http://127.0.0.1:" in lines_of(done)[1]
    (line,) = [each for each in done.stderr.splitlines() if "not ready after 1 s" in each]
    assert "seat: 1 needed, 0 free of 1" in line


def test_options_that_need_no_new_process_change_in_place(remora_home: Path) -> None:
    done = run_script(
        """
import os

@serve.deployment
class Tuned:
    def __init__(self, doubler): self.doubler = doubler
    def reconfigure(self, config): self.config = config
    async def __call__(self): return self.config["a"], await self.doubler.remote(2), os.getpid()

def ask(argument=Doubler, **options):
    handle = serve.run(Tuned.options(**options).bind(argument.bind()))
    return [handle.remote().result() for _ in range(8)]

(first,) = set(ask(user_config={"a": 1}))
(second,) = set(ask(user_config={"a": 2}))
several = set(ask(user_config={"a": 2}, num_replicas=2))
print(first[:2], second[:2], first[2] == second[2], second in several)
(other,) = set(ask(Doubler.options(name="Other"), user_config={"a": 2}))
print(other[:2], other not in several)
""",
        remora_home,
    )
    assert lines_of(done) == ["(1, 4) (2, 4) True True", "(2, 4) True"]


def test_a_killed_script_leaves_nothing_behind(remora_home: Path) -> None:
    done = run_script(
        "serve.run(Doubler.bind())\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
        remora_home,
    )
    assert done.returncode == -signal.SIGKILL
