"""Threads of libraries, in a process that others are forked from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: Libraries that make a thread for each core at their first use: threads do not survive a fork,
#: and what waits for them hangs. With one thread they make none.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: What else helps torch here: to ask for GPUs without starting CUDA, which could not be used in a
#: fork then, and to allocate in large pages, of which a fork has five hundred times fewer to copy.
_FOR_TORCH = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "THP_MEM_ALLOC_ENABLE": "1"}


def hold_threads() -> dict[str, str | None]:
    """Keep libraries from making threads in this process; returns what to give back."""
    saved = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    os.environ.update({**_FOR_TORCH, **os.environ})
    return saved


def release_threads(saved: Mapping[str, str | None], env: Mapping[str, str]) -> None:
    """Let libraries use threads again, in a fork: as many as `env` says, or one for each core."""
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    wanted = env.get("OMP_NUM_THREADS") or saved.get("OMP_NUM_THREADS") or ""
    count = int(wanted) if wanted.isdigit() else len(os.sched_getaffinity(0))
    # They have read the variables already.
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
    if (pools := sys.modules.get("threadpoolctl")) is not None:
        pools.threadpool_limits(count)
