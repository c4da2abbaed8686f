"""Tests that need an NVIDIA GPU and PyTorch: `pytest tests/gpu`. Elsewhere there is nothing to collect.

On a machine without GPUs what is decided about them is tested all the same, on machines that are
said to have some (tests/e2e/test_resources.py).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path


def _is_there() -> bool:
    return importlib.util.find_spec("torch") is not None and any(Path("/dev").glob("nvidia[0-9]*"))


if not _is_there():
    collect_ignore_glob = ["test_*.py"]
