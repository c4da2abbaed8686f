"""Changes what runs again and again, under load, and fails when one request notices.

    python scripts/rollout_soak.py [--scalings 50] [--roll-outs 20] [--rate 300] [--seed 7]

Roll-outs are good ones, slow ones, ones that cannot start, and ones that a newer one replaces half
way; scalings go up and down. The load is POSTs (which are never repeated), streams and WebSockets.
Every answer must be right, and every stream whole.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

# As a module of the repository, from wherever this is started: replicas import it as well.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import rollout_app

import remora as serve
from remora.api import begin_start
from remora.errors import DeployError

NAME = "soak"
#: Messages over each WebSocket.
NUM_MESSAGES = 10
MOST_REPLICAS = 4


@dataclass
class Record:
    """What happened.

    Attributes:
        done: requests that ended as they should, by kind.
        wrong: what went wrong, and how often.
        changes: changes that were made, by kind.
    """

    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)


class Load:
    """Requests of all kinds, at a steady rate."""

    def __init__(self, session: aiohttp.ClientSession, url: str, record: Record) -> None:
        self._session = session
        self._url = f"{url}/{NAME}"
        self._record = record
        self._tasks: set[asyncio.Task[None]] = set()

    async def once(self) -> None:
        """A POST."""
        async with self._session.post(f"{self._url}/once") as response:
            body = await response.read()
            if response.status != 200 or not body.isdigit():
                raise ValueError(f"{response.status} {body[:80]!r}")

    async def stream(self) -> None:
        """A streamed response, to its end."""
        async with self._session.get(f"{self._url}/stream") as response:
            parts = (await response.read()).split()
            if parts != [b"%d" % number for number in range(rollout_app.NUM_PARTS)]:
                raise ValueError(f"{response.status}, {len(parts)} parts")

    async def socket(self) -> None:
        """A WebSocket with some messages in both directions."""
        async with self._session.ws_connect(f"{self._url}/socket") as socket:
            for number in range(NUM_MESSAGES):
                await socket.send_str(str(number))
                answer = await socket.receive()
                if answer.type is not aiohttp.WSMsgType.TEXT or answer.data != str(number):
                    raise ValueError(f"{answer.type.name} {answer.data!r} as answer {number}")
                await asyncio.sleep(0.05)

    async def _one(self, kind: Callable[[], Awaitable[None]]) -> None:
        try:
            await kind()
        # Border: whatever a request ends with is the result of this script.
        except Exception as error:  # noqa: BLE001
            self._record.wrong[f"{kind.__name__}: {type(error).__name__}: {error}"] += 1
        else:
            self._record.done[kind.__name__] += 1

    async def generate(self, rate: float, rng: random.Random) -> None:
        """Send until cancelled."""
        due = time.monotonic()
        while True:
            kind = rng.choices([self.once, self.stream, self.socket], [85, 10, 5])[0]
            task = asyncio.create_task(self._one(kind))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def drain(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks)


class Changer:
    """Deploys one version after the other."""

    def __init__(self, record: Record, rng: random.Random) -> None:
        self._record = record
        self._rng = rng
        self._version = 1
        self._num_replicas = 2

    def app(self, kind: str = "good") -> serve.Application:
        """The application as it is to be now."""
        options = {"num_replicas": self._num_replicas, "max_constructor_retry_count": 2}
        return rollout_app.Versioned.options(**options).bind(self._version, kind)

    async def deploy(self, kind: str = "good", *, wait: bool = True) -> None:
        """Deploy it."""
        target = serve.RunTarget(self.app(kind), NAME, f"/{NAME}")
        await asyncio.to_thread(serve.run_many, [target], wait_for_applications_running=wait)

    async def scale(self) -> None:
        """Another number of replicas of the same version."""
        self._num_replicas = self._rng.randint(1, MOST_REPLICAS)
        self._record.changes["scaling"] += 1
        await self.deploy()

    async def roll_out(self, kind: str) -> None:
        """Another version, of a kind."""
        self._version += 1
        self._record.changes[kind] += 1
        if kind == "failing":
            with suppress(DeployError):
                await self.deploy("failing")
                raise AssertionError("a version that cannot start was deployed")
            # The way out of it is a good one.
            self._version += 1
            await self.deploy()
        elif kind == "cancelled":
            await self.deploy(self._rng.choice(["slow", "failing", "good"]), wait=False)
            await asyncio.sleep(self._rng.uniform(0.0, 0.5))
            self._version += 1
            await self.deploy()
        else:
            await self.deploy(kind)


async def soak(url: str, record: Record, args: argparse.Namespace) -> None:
    """Make all changes under load."""
    rng = random.Random(args.seed)
    changer = Changer(record, rng)
    await changer.deploy()
    kinds = ["good", "failing", "slow", "cancelled"]
    changes: list[Callable[[], Awaitable[None]]] = [changer.scale] * args.scalings
    for number in range(args.roll_outs):
        kind = kinds[number % len(kinds)]
        changes.append(lambda kind=kind: changer.roll_out(kind))  # type: ignore[misc]
    rng.shuffle(changes)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        load = Load(session, url, record)
        generator = asyncio.create_task(load.generate(args.rate, random.Random(args.seed)))
        try:
            for number, change in enumerate(changes, 1):
                await change()
                if number % 10 == 0:
                    print(f"{number} of {len(changes)} changes, {dict(record.done)}", flush=True)
        finally:
            generator.cancel()
            await asyncio.wait([generator])
            await load.drain()


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--scalings", type=int, default=50)
    parser.add_argument("--roll-outs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rollouts-"))
    os.environ["REMORA_HOME"] = str(folder / "home")
    record = Record()
    began = time.monotonic()
    try:
        url = begin_start(http_options={"port": 0}).wait_ready()
        asyncio.run(soak(url, record, args))
        serve.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s, changes: {dict(record.changes)}")
    print(f"requests: {dict(record.done)}")
    for text, number in record.wrong.most_common(10):
        print(f"WRONG: {number} x {text}")
    failed = bool(record.wrong) or len(record.done) < 3
    print("failed" if failed else "passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
