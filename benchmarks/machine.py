"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

_PACKAGES = ("uvicorn", "httptools", "uvloop", "msgspec", "fastapi", "starlette", "numpy")


def parse_cpu_model(cpuinfo: str) -> str:
    """Return the first model name in the text of `/proc/cpuinfo`. Pure."""
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return done.stdout.strip()


def describe(root: Path) -> dict[str, object]:
    """Return processor, versions, date and commit; `commit` ends in `+` with local changes."""
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    commit = _git(root, "rev-parse", "--short", "HEAD") or "unknown"
    return {
        "cpu": parse_cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit + ("+" if changed else ""),
        "busy_percent_before": psutil.cpu_percent(interval=1.0),
    }
