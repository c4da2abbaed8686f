"""A script that has called from plain code ends with its own status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
