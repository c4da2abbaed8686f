"""How many requests a machine of many cores answers, by proxies and replicas.

    python scripts/cores.py                                1, 2, 4 of each
    python scripts/cores.py --proxies 1 2 4 --replicas 1 2 4 8 --seconds 3

Two handlers: one that returns two bytes, where proxies are what is short, and one that computes for half
a millisecond, where replicas are. `wrk` sends with as many threads as proxies, and 32 connections for each.
The default number of proxies (`default_num_proxies`) was chosen by what this shows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import remora as serve
from benchmarks.http_load import parse_wrk, require_wrk
from remora.api import begin_start

WORK_S = 0.0005
CONNECTIONS_PER_THREAD = 32


@serve.deployment(max_ongoing_requests=1000)
class Hello:
    """Returns two bytes, after `work_s` seconds of computing."""

    def __init__(self, work_s: float) -> None:
        self.work_s = work_s

    async def __call__(self, request: Any) -> str:
        """Answer one request."""
        until = time.thread_time() + self.work_s
        while self.work_s and time.thread_time() < until:
            pass
        return "ok"


def rate(url: str, threads: int, seconds: int) -> float:
    """Requests a second that are answered.

    Raises:
        SystemExit: one was refused or lost.
    """
    connections = threads * CONNECTIONS_PER_THREAD
    argv = [require_wrk(), f"-t{threads}", f"-c{connections}", f"-d{seconds}s", url]
    result = parse_wrk(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    if result.refused or result.socket_errors:
        raise SystemExit(f"refused {result.refused}, broke {result.socket_errors} at {url}")
    return result.requests_per_s


def measure(num_proxies: int, replicas: Sequence[int], seconds: int, work_s: float) -> list[float]:
    """The rates of one row."""
    rates = []
    with tempfile.TemporaryDirectory(prefix="remora-") as home:
        os.environ["REMORA_HOME"] = home
        instance = begin_start(http_options={"port": 0, "num_proxies": num_proxies})
        try:
            for number in replicas:
                serve.run(Hello.options(num_replicas=number).bind(work_s))
                rates.append(rate(instance.wait_ready(), num_proxies, seconds))
        finally:
            serve.shutdown()
    return rates


def main() -> None:
    """Print a table for each handler."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--proxies", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    for work_s in (0.0, WORK_S):
        print(f"\nrequests/s, {work_s * 1000:g} ms of computing, {os.cpu_count()} cores\n")
        print("| proxies | " + " | ".join(f"{n} replicas" for n in options.replicas) + " |")
        print("|---" * (len(options.replicas) + 1) + "|")
        for number in options.proxies:
            rates = measure(number, options.replicas, options.seconds, work_s)
            print(
                f"| {number} | " + " | ".join(f"{each:,.0f}" for each in rates) + " |", flush=True
            )


if __name__ == "__main__":
    main()
