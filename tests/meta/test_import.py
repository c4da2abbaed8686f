"""`import remora` is quick, light and does nothing."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Seconds. What a user of a command-line tool does not notice.
IMPORT_LIMIT_S = 0.200
#: Modules that only a feature needs, and that cost tens of milliseconds each.
TOO_HEAVY = (
    "fastapi",
    "pydantic",
    "starlette",
    "torch",
    "numpy",
    "uvicorn",
    "ray",
    "rich",
    "click",
)


def run_python(code: str, home: Path) -> Any:
    """Run `code` in a fresh interpreter and return the JSON that it prints."""
    env = {**os.environ, "REMORA_HOME": str(home), "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.slow
def test_takes_less_than_200_ms(tmp_path: Path) -> None:
    code = "import time; t = time.perf_counter(); import remora;print(time.perf_counter() - t)"
    run_python(code, tmp_path)  # writes the bytecode files, once
    times = [run_python(code, tmp_path) for _ in range(5)]
    assert statistics.median(times) < IMPORT_LIMIT_S, f"{times} s"


@pytest.mark.slow
def test_brings_no_heavy_module(tmp_path: Path) -> None:
    code = f"import remora, sys, json; print(json.dumps([m for m in {TOO_HEAVY!r} if m in sys.modules]))"
    assert run_python(code, tmp_path) == []


@pytest.mark.slow
def test_starts_no_thread_no_process_and_writes_no_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code = (
        "import json, threading, multiprocessing, signal, logging\n"
        "handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]\n"
        "import remora\n"
        "after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]\n"
        "print(json.dumps({\n"
        "    'threads': threading.active_count(),\n"
        "    'children': len(multiprocessing.active_children()),\n"
        "    'signals_kept': handlers == after,\n"
        "    'root_log_handlers': len(logging.getLogger().handlers),\n"
        "}))"
    )
    assert run_python(code, home) == {
        "threads": 1,
        "children": 0,
        "signals_kept": True,
        "root_log_handlers": 0,
    }
    assert not home.exists()
