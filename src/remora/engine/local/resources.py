"""What this machine offers to replicas: what was declared, and for the rest what is found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remora.engine.base import ACCELERATOR_LABEL, VISIBLE_GPUS
from remora.options.resources import AS_FOUND, MachineOptions
from remora.wire.holds import Hold


@dataclass(frozen=True)
class Machine:
    """This machine as a node.

    Attributes:
        resources: totals by name.
        labels: for label selectors.
        gpus: how CUDA knows each GPU, by its index.
    """

    resources: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()

    def environment(self, holds: tuple[Hold, ...], env: Mapping[str, str]) -> dict[str, str]:
        """Return `env` with what restricts a process to the GPUs that it holds. Pure.

        All bundles count: what a replica starts beside itself uses the others. One that states
        no GPUs is left alone; one that states none at all (0) sees none.
        """
        indices = [index for hold in holds for index in hold.gpus]
        if any("GPU" in hold.resources for hold in holds):
            names = [
                self.gpus[index] if index < len(self.gpus) else str(index) for index in indices
            ]
            return {VISIBLE_GPUS: ",".join(dict.fromkeys(names)), **env}
        return dict(env)


def this_machine(options: MachineOptions = AS_FOUND) -> Machine:
    """Look at this machine; what the options say counts whatever is found."""
    declared = options.resources
    found = {"CPU": float(len(os.sched_getaffinity(0))), "memory": float(_memory_bytes())}
    gpus, kind = _find_gpus()
    if "GPU" in declared:
        # More than was found: a test, or devices that are counted otherwise.
        gpus = gpus[: int(declared["GPU"])]
        gpus += tuple(str(index) for index in range(len(gpus), int(declared["GPU"])))
    if gpus:
        found["GPU"] = float(len(gpus))
    own_labels = {ACCELERATOR_LABEL: kind} if kind else {}
    return Machine({**found, **declared}, {**own_labels, **options.labels}, gpus)


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        # In a container: its own limit.
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _find_gpus() -> tuple[tuple[str, ...], str]:
    """Find the GPUs that this process may use, as CUDA names them, and what kind they are."""
    indices, kind = _ask_nvml() or (_device_files(), "")
    visible = os.environ.get(VISIBLE_GPUS)
    if visible is None:
        return tuple(str(index) for index in indices), kind
    # "-1" and everything behind it is hidden, as for CUDA itself.
    names = [name.strip() for name in visible.split(",")]
    shown = names[: names.index("-1")] if "-1" in names else names
    return tuple(name for name in shown if name), kind if shown else ""


def _ask_nvml() -> tuple[list[int], str] | None:
    """Ask NVIDIA's library; None: it, its driver or the package `nvidia-ml-py` is not there."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        count = int(pynvml.nvmlDeviceGetCount())
        kinds = {_kind(pynvml, index) for index in range(count)}
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    # A machine with two kinds is labelled by neither: a selector could not tell which it gets.
    return list(range(count)), kinds.pop() if len(kinds) == 1 else ""


def _kind(nvml: Any, index: int) -> str:
    """Shorten `NVIDIA A100-SXM4-80GB` to `A100`, as Ray names accelerators."""
    name = nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index))
    text = name.decode() if isinstance(name, bytes) else str(name)
    words = text.replace("NVIDIA", "").replace("Tesla", "").split()
    return words[0].split("-")[0] if words else ""


def _device_files() -> list[int]:
    try:
        names = [path.name[6:] for path in Path("/dev").glob("nvidia*")]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdigit())
