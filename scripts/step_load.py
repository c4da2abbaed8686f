"""Ten times the load for a minute, then quiet: how the number of replicas and the latency follow.

    python scripts/step_load.py --plot docs/step_load.svg [--ray PYTHON_WITH_RAY_SERVE]

The same application, options and arrivals on Remora and, where an interpreter with Ray Serve is
named, on Ray Serve at the same time: handlers wait and do not compute, so neither is in the
other's way.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp

from remora.simulation.plot import svg
from remora.simulation.result import Result, Sample, quantile

_SERVER = Path(__file__).with_name("step_server.py")
_PORT = 18473


class Told:
    """What the server's process says of its replicas, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.ready = threading.Event()
        self.lines: list[dict[str, float]] = []
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                self.ready.set()
            elif line.startswith("{"):
                self.lines.append(json.loads(line))


def arrivals(rates: list[tuple[float, float]], rng: random.Random) -> list[float]:
    """When requests come: (seconds, requests/s) after another, at random times. Pure but for `rng`."""
    times, begin = [], 0.0
    for length_s, rate in rates:
        at = begin + rng.expovariate(rate)
        while at < begin + length_s:
            times.append(at)
            at += rng.expovariate(rate)
        begin += length_s
    return times


async def ask(times: list[float], port: int) -> tuple[float, list[tuple[float, float, bool]]]:
    """Send a request at each time, whatever became of those before; (begin, latency, good) each."""
    answers: list[tuple[float, float, bool]] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.time()

        async def one(at: float) -> None:
            start = time.perf_counter()
            try:
                async with session.get(f"http://127.0.0.1:{port}/") as response:
                    good = response.status == 200 and await response.text() == "ok"
            except (aiohttp.ClientError, OSError):
                good = False
            answers.append((at, time.perf_counter() - start, good))

        tasks = []
        for at in times:
            await asyncio.sleep(max(0.0, began + at - time.time()))
            tasks.append(asyncio.create_task(one(at)))
        await asyncio.gather(*tasks)
    return began, answers


def measure(
    name: str, python: str, port: int, times: list[float], length_s: float
) -> tuple[Result, int]:
    """Serve and ask; the curve and how many requests failed."""
    process = subprocess.Popen(
        [python, str(_SERVER), name, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    told = Told(process)
    try:
        if not told.ready.wait(90):
            raise SystemExit(f"{name} was not ready after 90 s")
        began, answers = asyncio.run(ask(times, port))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
    title = "Remora" if name == "remora" else "Ray Serve"
    result = Result(title, latencies=[latency for _, latency, _ in answers])
    for second in range(1, int(length_s) + 1):
        said = [line for line in told.lines if line["at"] - began <= second]
        ended = [took for at, took, _ in answers if second - 1 < at + took <= second]
        arrived = sum(1 for at, _, _ in answers if second - 1 < at <= second)
        ongoing = sum(1 for at, took, _ in answers if at <= second < at + took)
        last = said[-1] if said else {"target": 0, "running": 0}
        result.samples.append(
            Sample(
                float(second),
                int(last["target"]),
                int(last["running"]),
                ongoing,
                0,
                arrived,
                quantile(ended, 0.5),
                quantile(ended, 0.99),
            )
        )
    return result, sum(1 for _, _, good in answers if not good)


def main() -> None:
    """Measure, tell and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--ray", metavar="PYTHON", help="an interpreter that has Ray Serve")
    parser.add_argument("--plot", metavar="FILE", help="draw what was seen, as SVG")
    parser.add_argument("--low", type=float, default=3.0, help="requests/s before and after (3)")
    parser.add_argument("--high", type=float, default=30.0, help="requests/s of the minute (30)")
    parser.add_argument("--step-s", type=float, default=60.0, help="length of the step (60)")
    parser.add_argument("--quiet-s", type=float, default=80.0, help="length of the quiet (80)")
    args = parser.parse_args()
    rates = [(20.0, args.low), (args.step_s, args.high), (args.quiet_s, args.low)]
    times = arrivals(rates, random.Random(7))
    length_s = sum(seconds for seconds, _ in rates)
    sides = [("remora", sys.executable)] + ([("ray", args.ray)] if args.ray else [])
    results = []
    print(f"{len(times)} requests in {length_s:.0f} s …", flush=True)
    with ThreadPoolExecutor() as threads:
        runs = [
            threads.submit(measure, name, python, _PORT + index, times, length_s)
            for index, (name, python) in enumerate(sides)
        ]
    for run in runs:
        result, num_failed = run.result()
        results.append(result)
        targets = [sample.target for sample in result.samples]
        changes = [
            f"{second} s: {after}"
            for second, (before, after) in enumerate(itertools.pairwise(targets), 2)
            if before != after
        ]
        print(
            f"{result.name}: failed {num_failed}, p50 {result.latency_s(0.5):.3f} s, "
            f"p99 {result.latency_s(0.99):.3f} s, at most {result.peak} replicas, "
            f"number of replicas at {', '.join(changes)}",
            flush=True,
        )
    if args.plot:
        Path(args.plot).write_text(svg(results))


if __name__ == "__main__":
    main()
