"""A script that has called from plain code ends with its own status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, threading
from pathlib import Path

def told():
    names = [thread.name for thread in threading.enumerate()]
    print("left:", [name for name in names if name == "remora-routing"])

atexit.register(told)  # called after those that were registered later
from remora.home import Home
from remora.router import process

process.use_instance(Home.locate("HOME"), "script")
process.background_client()
print("began")
"""


def test_the_thread_of_calls_ends_before_the_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("HOME", str(tmp_path / "home")))
    done = subprocess.run(
        [sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["began", "left: []"]), done.stderr


ROUTER_SCRIPT = """
import atexit, threading

def told():
    names = [thread.name for thread in threading.enumerate()]
    print("left:", [name for name in names if name.startswith("remora-router")])

atexit.register(told)
import cloudpickle
from remora.router import user_side

class Router:
    def __init__(self, **given):
        began.set()
        HANGS.wait()

HANGS = threading.Event()
began = threading.Event()
user_side.EXIT_LIMIT_S = 10.0 if IS_WELL else 0.1
if IS_WELL:
    HANGS.set()
user_side.cloudpickle.loads = lambda code: Router
side = user_side.UserSide(b"", {}, {"deployment_id": "app/D"}, print)
began.wait()
print("began")
"""


@pytest.mark.parametrize(("is_well", "left"), [(True, "[]"), (False, "['remora-router-app/D']")])
def test_the_threads_of_routers_of_users_end_before_the_interpreter_if_they_can(
    tmp_path: Path, is_well: bool, left: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(ROUTER_SCRIPT.replace("IS_WELL", str(is_well)))
    done = subprocess.run(
        [sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["began", f"left: {left}"]), (
        done.stderr
    )
