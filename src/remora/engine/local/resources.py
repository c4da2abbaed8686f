"""What this machine offers to replicas."""

from __future__ import annotations

import os
from pathlib import Path


def machine_resources() -> dict[str, float]:
    """Count what processes started from here may use: `CPU` cores, `memory` in bytes, `GPU`."""
    resources = {"CPU": float(len(os.sched_getaffinity(0))), "memory": float(_memory_bytes())}
    if gpus := _num_gpus():
        resources["GPU"] = float(gpus)
    return resources


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        # In a container: its own limit.
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _num_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # "-1" and everything behind it is hidden, as for CUDA itself.
        names = [name.strip() for name in visible.split(",")]
        shown = names[: names.index("-1")] if "-1" in names else names
        return len([name for name in shown if name])
    try:
        return sum(1 for p in Path("/dev").glob("nvidia*") if p.name[6:].isdigit())
    except OSError:
        return 0
