"""What Remora adds to the start of Ray: `python -m benchmarks.ray_start`.

In turns, a program that only imports Ray and calls `ray.init()`, and `remora run` of the hello
application with a Ray of its own, from the command to its first answer. Ray's own start varies by
a second, because it looks once a second whether its node is there. So means are compared: a median
of two heaps of figures a second apart says which heap is larger.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import TargetError, user_environment
from benchmarks.sides import RAY_SIDE

#: Seconds that the goal allows.
GOAL_S = 1.5
_ROUNDS = 9
_LIMIT_S = 60.0
#: Prints how long Ray takes by itself, with what Remora leaves out of it left out as well.
_BARE = """
import time
begin = time.perf_counter()
import ray
ray.init("local", include_dashboard=False, logging_level="ERROR", log_to_driver=True)
print(time.perf_counter() - begin)
ray.shutdown()
"""


def bare_start_s() -> float:
    """Start Ray alone and end it; returns the seconds of import and start.

    Raises:
        TargetError: it does not start.
    """
    argv = [sys.executable, "-c", _BARE]
    environment = {**user_environment(os.environ), "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=True
        )
        return float(done.stdout.split()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        raise TargetError(f"Ray alone does not start: {error}") from error


def remora_start_s(scratch: Path) -> float:
    """Start Remora on a Ray of its own and end it; returns the seconds to the first answer.

    Raises:
        TargetError: it does not answer.
    """
    target = RAY_SIDE.scenes["hello"](scratch)
    try:
        return target.start()
    finally:
        target.stop()


def summary(bare: Sequence[float], remora: Sequence[float]) -> str:
    """Say what was measured. Pure.

    Args:
        bare: seconds of Ray alone, by round.
        remora: seconds of Remora on Ray, by round.
    """
    added = statistics.fmean(remora) - statistics.fmean(bare)
    ranges = [
        f"{name} {statistics.fmean(each):.2f} s ({min(each):.2f} - {max(each):.2f})"
        for name, each in (("Ray alone", bare), ("Remora on Ray", remora))
    ]
    verdict = "met" if added < GOAL_S else "missed"
    return f"{', '.join(ranges)}: Remora adds {added:.2f} s; goal < {GOAL_S:g} s: {verdict}"


def main() -> None:
    """Measure and say what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    rounds = parser.parse_args().rounds
    bare: list[float] = []
    remora: list[float] = []
    with tempfile.TemporaryDirectory(prefix="remora-start-") as folder:
        remora_start_s(Path(folder))  # Fills the caches, and is not counted.
        for number in range(rounds):
            bare.append(bare_start_s())
            remora.append(remora_start_s(Path(folder)))
            print(f"round {number + 1}: {bare[-1]:.2f} s, {remora[-1]:.2f} s", file=sys.stderr)
    print(summary(bare, remora))


if __name__ == "__main__":
    main()
