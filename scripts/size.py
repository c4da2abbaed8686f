"""Measures what the controller costs when there is much of everything, on engines of fakes.

    python scripts/size.py [--deployments 1000] [--replicas 4]

Time inside is virtual; what is measured is the processor time of the controller's thread, without the collection
of garbage that others in its process have made.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from remora.config import DeploymentConfig
from remora.control.admin import Admin
from remora.control.controller import Controller
from remora.testing import FakeEngine, FakeReplicas
from remora.testing.virtual_time import run
from remora.wire.codec import pack, unpack
from remora.wire.control import Ack, ApplicationSpec, DeploymentSpec, DeployRequest, Subscription

#: Deployments in each application.
PER_APP = 10
SUBSCRIBERS = 64


@dataclass
class Sizes:
    """What was measured; seconds of processor time, and bytes.

    Attributes:
        idle_tick_s: a tick with nothing to do, the median of many.
        worst_tick_s: the longest during a roll-out of one deployment.
        spread_s: from a replica's crash to the last of the subscribers that knows.
        state_bytes: everything that is saved, code excepted.
        start_s: until everything runs.
        adopt_s: until a restarted controller has found everything again.
    """

    idle_tick_s: float = 0.0
    worst_tick_s: float = 0.0
    spread_s: float = 0.0
    state_bytes: int = 0
    start_s: float = 0.0
    adopt_s: float = 0.0
    ticks_s: list[float] = field(default_factory=list)


class Watched(Controller):
    """A controller that says how long its ticks take."""

    ticks_s: list[float]

    async def tick(self) -> None:
        """Tick, with a stop watch."""
        began = time.thread_time()
        await super().tick()
        self.ticks_s.append(time.thread_time() - began)


@contextmanager
def timed(sizes: Sizes, name: str) -> Iterator[None]:
    """Note how long a block takes."""
    began = time.thread_time()
    yield
    setattr(sizes, name, time.thread_time() - began)


def application(number: int, num_replicas: int, version: str = "1") -> ApplicationSpec:
    """Describe one application of `PER_APP` deployments."""
    deployments = tuple(
        DeploymentSpec(
            name=f"Model{index}",
            code=b"code",
            code_version=version if index == 0 else "1",
            config=DeploymentConfig(num_replicas=num_replicas),
        )
        for index in range(PER_APP)
    )
    return ApplicationSpec(
        name=f"app{number}",
        route_prefix=f"/app{number}",
        ingress="Model0",
        deployments=deployments,
    )


class Hall:
    """One instance with many deployments."""

    def __init__(self, num_deployments: int, num_replicas: int) -> None:
        self.engine = FakeEngine()
        self.replicas = FakeReplicas(self.engine)
        self.num_apps = max(1, num_deployments // PER_APP)
        self.num_replicas = num_replicas
        self.controller: Watched
        self._running: asyncio.Task[None]

    async def start(self) -> None:
        """Start a controller."""
        self.controller = Watched(self.engine, connect=self.replicas.connect, salt="s")
        self.controller.ticks_s = []
        self._running = asyncio.create_task(self.controller.run())
        await self.controller.ready.wait()

    async def stop(self) -> None:
        """Kill it."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def deploy(self, *apps: ApplicationSpec) -> None:
        """Deploy as a client does."""
        admin = Admin(self.controller, home="/home")
        answer = admin.handlers["deploy"](pack(DeployRequest(apps)))
        assert not hasattr(answer, "__aiter__")
        await answer

    async def until_settled(self) -> None:
        """Wait until all replicas run, of the present targets."""
        changed = self.controller.watch()
        while not self._is_settled():
            changed.clear()
            await changed.wait()
        self.controller.unwatch(changed)

    def _is_settled(self) -> bool:
        state = self.controller.state
        return state.hold_snapshot_until_s is None and all(
            deployment.completed and len(deployment.replicas) == self.num_replicas
            for app in state.applications.values()
            for deployment in app.deployments.values()
        )


async def follow(hall: Hall, number: int, news: asyncio.Condition, versions: list[int]) -> None:
    """Follow as a router does."""
    publisher = hall.controller.publisher
    async for change in publisher.subscribe(Subscription(f"router{number}", number)):
        known = unpack(pack(change), type(change))
        async with news:
            versions[number] = known.version
            news.notify_all()
        publisher.ack(Ack(f"router{number}", known.version))


async def spread(hall: Hall) -> float:
    """Change the routing, and wait until every subscriber knows."""
    versions, news = [-1] * SUBSCRIBERS, asyncio.Condition()
    followers = [
        asyncio.create_task(follow(hall, number, news, versions)) for number in range(SUBSCRIBERS)
    ]
    async with news:
        await news.wait_for(lambda: min(versions) >= 0)
        before = max(versions)
        began = time.thread_time()
        hall.engine.crash(next(iter(hall.engine.processes)))
        await news.wait_for(lambda: min(versions) > before)
        took_s = time.thread_time() - began
    for task in followers:
        task.cancel()
    await asyncio.wait(followers)
    return took_s


async def take(num_deployments: int, num_replicas: int) -> Sizes:
    """Measure one size."""
    sizes = Sizes()
    hall = Hall(num_deployments, num_replicas)
    await hall.start()
    apps = [application(number, num_replicas) for number in range(hall.num_apps)]
    with timed(sizes, "start_s"):
        await hall.deploy(*apps)
        await hall.until_settled()
    await asyncio.sleep(1.0)

    controller = hall.controller
    controller.ticks_s = []
    for _ in range(20):
        await controller.tick()
    sizes.idle_tick_s = statistics.median(controller.ticks_s)

    sizes.spread_s = await spread(hall)
    await hall.until_settled()

    controller.ticks_s = []
    await hall.deploy(application(0, num_replicas, version="2"))
    await hall.until_settled()
    await asyncio.sleep(20.0)
    sizes.worst_tick_s = max(controller.ticks_s)
    sizes.ticks_s = controller.ticks_s

    sizes.state_bytes = sum(
        len(value)
        for key, value in hall.engine.store.items()
        if not key.startswith(("code/", "log/"))
    )
    await hall.stop()
    with timed(sizes, "adopt_s"):
        await hall.start()
        await hall.until_settled()
    await hall.stop()
    return sizes


def measure(num_deployments: int, num_replicas: int) -> Sizes:
    """Measure one size, in virtual time."""
    # A collection of garbage in a tick is the controller's, but not of what others made before it.
    gc.collect()
    gc.freeze()
    return run(take(num_deployments, num_replicas))


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--deployments", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=4)
    args = parser.parse_args()
    found = measure(args.deployments, args.replicas)
    print(f"{args.deployments} deployments with {args.deployments * args.replicas} replicas")
    print(f"  a tick with nothing to do     {found.idle_tick_s * 1000:8.2f} ms")
    print(f"  the longest of a roll-out     {found.worst_tick_s * 1000:8.2f} ms")
    print(f"  a change at {SUBSCRIBERS} subscribers    {found.spread_s * 1000:8.2f} ms")
    print(f"  saved state                   {found.state_bytes / 1e6:8.2f} MB")
    print(f"  until everything ran          {found.start_s:8.2f} s")
    print(f"  until everything was adopted  {found.adopt_s:8.2f} s")


if __name__ == "__main__":
    main()
