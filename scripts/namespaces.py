"""Serve on several hosts, made of network namespaces, and break what can break under load.

    python scripts/namespaces.py                 everything, in about five minutes
    python scripts/namespaces.py cut controller  some of it
    python scripts/namespaces.py --plain         without TLS between the hosts

Needs root, `ip` (Debian: iproute2), and for `head-redis` `redis-server`. Each part says what it saw; exit
status 1 says that something was not as it should be. What is asked for all the time: 200 GETs a second, which
may run twice, and 20 POSTs, which may not.

    near         one replica on each of three hosts; each front door asks its own host's replica, and one without
                 any asks those of its zone
    cut          a host is cut off for 20 s, and Ray gives its node up meanwhile
    blip         the same, and Ray waits: its own limits are longer
    controller   the controller is killed
    proxy        a proxy is killed
    head         Ray's head process ends and is not started again: what goes on, and for how long
    head-redis   Ray's head process ends and is started again, over a Redis that stays
    delay        calls between two hosts with 1 ms of delay, beside a plain ping-pong over the same relay
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.namespaces_delay import PORT as PING_PORT
from scripts.namespaces_delay import PRIORITY
from tests.e2e.load import Answer, client, get
from tests.e2e.processes import kill, title
from tests.e2e.waiting import until_async, until_true
from tests.ray.apps import Counted
from tests.ray.far import FarInstance, NumberedLoad, nodes_of, ran, told
from tests.ray.hosts import QUICK_LOSS, Hosts, why_not

from remora.options.node import PLAIN

CUT_S = 20.0
#: Ray's nodes give up a head that stays away after a minute.
HEADLESS_S = 100.0
#: There and back.
DELAY_S = 0.001
ADDED_S = 0.0003
#: Not that of Ray's head, nor of a Redis that runs here.
REDIS_PORT = 6390
ZONE = "ray.io/availability-zone"


class Wrong(Exception):
    """Something was not as it should be."""


def say(text: str) -> None:
    """Print a line with the time since the beginning."""
    print(f"{time.monotonic() - _BEGAN:7.1f} s  {text}", flush=True)


_BEGAN = time.monotonic()


def require(is_so: object, text: str) -> None:
    """Go on if it is so."""
    if not is_so:
        raise Wrong(text)


@dataclass
class Traffic:
    """The load of one part."""

    gets: NumberedLoad
    posts: NumberedLoad

    @property
    def answers(self) -> list[Answer]:
        """All that there are so far."""
        return [*self.gets.answers, *self.posts.answers]


@asynccontextmanager
async def traffic(url: str, rate: float = 200.0) -> AsyncIterator[Traffic]:
    """Ask all the time."""
    async with client() as session:
        made = Traffic(
            NumberedLoad(session, url, rate, "GET"), NumberedLoad(session, url, rate / 10, "POST")
        )
        loads = (made.gets, made.posts)
        tasks = [asyncio.create_task(load.generate()) for load in loads]
        try:
            await made.gets.more(int(rate))
            yield made
            await made.gets.more(int(rate))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for load in loads:
                await load.drain()


@dataclass
class Scene:
    """Hosts with an instance and the application that is asked."""

    hosts: Hosts
    instance: FarInstance
    folder: Path

    def report(self, seen: Traffic, *, posts_may_fail: bool = False) -> None:
        """Say how requests ended, and whether any that may not ran twice."""
        twice = {key: n for key, n in ran(self.folder).items() if n > 1 and key.startswith("POST")}
        slow = max(answer.ended - answer.began for answer in seen.answers)
        say(
            f"{len(seen.gets.answers)} GETs, {len(seen.gets.failures)} failed; "
            f"{len(seen.posts.answers)} POSTs, {len(seen.posts.failures)} failed, "
            f"{len(twice)} ran twice; the slowest took {slow:.1f} s"
        )
        require(not seen.gets.failures, f"GETs failed: {told(seen.gets.failures)}")
        require(not twice, f"ran twice: {twice}")
        if seen.posts.failures:
            say(f"POSTs: {dict(told(seen.posts.failures))}")
            require(posts_may_fail, "POSTs failed")


@asynccontextmanager
async def scene(
    number: int, replicas: int, *, tls: bool, app: Any = Counted, **options: Any
) -> AsyncIterator[Scene]:
    """Make hosts, start an instance and deploy."""
    # Starting Ray waits for processes.
    hosts = await asyncio.to_thread(Hosts, number, **options)
    try:
        await asyncio.to_thread(hosts.start)
        instance = await asyncio.to_thread(FarInstance, hosts, hosts.certify() if tls else PLAIN)
        folder = hosts.folder / "ran"
        folder.mkdir()
        await instance.wait_joined()
        await instance.run(app.options(num_replicas=replicas).bind(str(folder)), "app")
        await instance.wait_doors()
        say(f"{number} hosts serve, {'with' if tls else 'without'} TLS between them")
        yield Scene(hosts, instance, folder)
    except BaseException:
        for host in hosts.hosts:
            print(host.output[-2000:], file=sys.stderr)
        if not (hosts.folder / "home").exists():
            raise
        kept = Path("/tmp/remora-namespaces-logs")
        shutil.rmtree(kept, ignore_errors=True)
        states = [state for host in hosts.hosts for state in host.states()]
        for number, path in enumerate((hosts.folder / "home", *states)):
            shutil.copytree(path / "logs", kept / str(number), ignore_dangling_symlinks=True)
        say(f"what was logged is in {kept}")
        raise
    finally:
        await asyncio.to_thread(hosts.remove)


async def answers_from(url: str, number: int = 20) -> Counter[str]:
    """Which nodes answer at a front door."""
    async with client() as session:
        found: Counter[str] = Counter()
        for _ in range(number):
            async with session.get(url + "?id=x") as response:
                found[(await response.json())["node"]] += 1
        return found


def pids_on(hosts: Hosts, index: int, kind: str) -> list[int]:
    """Processes of Remora on a host."""
    return [pid for pid in hosts.hosts[index].pids() if title(pid).startswith(f"remora: {kind}")]


# --------------------------------------------------------------------------------------------- parts


async def near(tls: bool) -> None:
    """Spread, and whom each front door asks."""
    labels = [
        {ZONE: "west", "host": "one"},
        {ZONE: "east", "host": "two"},
        {ZONE: "east", "host": "three"},
    ]
    async with scene(3, 3, tls=tls, labels=labels) as now:
        found = await nodes_of(now.instance, "Counted", "app")
        require(sorted(found.values()) == [1, 1, 1], f"not one on each host: {found}")
        nodes: list[str] = []
        for index in range(3):
            url = f"{now.instance.url_of(index)}/app"
            await until_async(functools.partial(asks_one, url), f"{url} asks its own host")
            nodes += await answers_from(url)
        require(sorted(nodes) == sorted(found), f"front doors ask {nodes}")
        say("one replica on each host, and each front door asks its own")
        outer = {"num_cpus": 0.1, "label_selector": {"host": "in(one,three)"}}
        app = Counted.options(num_replicas=2, ray_actor_options=outer)
        await now.instance.run(app.bind(str(now.folder)), "app")

        async def asks_its_zone() -> bool:
            return set(await answers_from(f"{now.instance.url_of(1)}/app")) == {nodes[2]}

        await until_async(asks_its_zone, "the host without a replica asks the one in its zone")
        say("the host without a replica asks the one in its zone alone")


async def asks_one(url: str) -> bool:
    """One node answers there."""
    return len(await answers_from(url)) == 1


async def cut(tls: bool, *, quick: bool = True) -> None:
    """Cut a host off for a while, under load that goes to it and another one alike."""
    app = Counted.options(ray_actor_options={"num_cpus": 0.1, "label_selector": {"role": "worker"}})
    labels = [{"role": "door"}, {"role": "worker"}, {"role": "worker"}]
    config = QUICK_LOSS if quick else {}
    async with scene(3, 2, tls=tls, app=app, labels=labels, config=config) as now:
        url = f"{now.instance.url}/app"
        await until_async(lambda: both(url), "both hosts are asked")
        before = await nodes_of(now.instance, "Counted", "app")
        require(sorted(before.values()) == [1, 1], f"not one on each host: {before}")
        old = pids_on(now.hosts, 2, "replica")
        async with traffic(url) as seen:
            began = time.monotonic()
            now.hosts.hosts[2].pull()
            say("one of the two is cut off")
            if quick:
                await until_async(lambda: two_on_one(now), "two replicas on the other", 60.0)
                say(f"both replicas are on the other host after {time.monotonic() - began:.1f} s")
            await asyncio.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
            now.hosts.hosts[2].plug()
            plugged = time.monotonic()
            say("it is back")
            if quick:
                await until_true(
                    lambda: not pids_on(now.hosts, 2, "replica"), "old replicas end", 60.0
                )
                require(await two_on_one(now), "not two replicas")
                say(
                    "what ran on it has ended after "
                    f"{time.monotonic() - plugged:.0f} s; two replicas are declared, two run"
                )
            else:
                await until_async(lambda: both(url), "both hosts are asked again", 30.0)
                say(f"both hosts are asked again after {time.monotonic() - plugged:.1f} s")
                require(pids_on(now.hosts, 2, "replica") == old, "its replica is another one")
                require(await nodes_of(now.instance, "Counted", "app") == before, "other replicas")
        now.report(seen, posts_may_fail=True)


async def both(url: str) -> bool:
    """Two nodes answer there."""
    return len(await answers_from(url)) == 2


async def two_on_one(now: Scene) -> bool:
    """Two replicas answer, from one node."""
    found = await nodes_of(now.instance, "Counted", "app")
    return list(found.values()) == [2]


async def blip(tls: bool) -> None:
    """A cut that Ray waits through."""
    await cut(tls, quick=False)


async def controller(tls: bool) -> None:
    """Kill the controller."""
    async with scene(2, 2, tls=tls) as now:
        before = await now.instance.pids("app")
        old = (await now.instance.status()).controller_pid
        async with traffic(f"{now.instance.url_of(1)}/app") as seen:
            kill(old)
            await now.instance.wait(
                lambda s: s.controller_pid != old, "a new controller answers", 60.0
            )
            say("a new controller answers")
            require(await now.instance.pids("app") == before, "replicas are other ones")
        now.report(seen)


async def proxy(tls: bool) -> None:
    """Kill the proxy of the other host, and then the one that is asked."""
    async with scene(2, 2, tls=tls) as now:
        async with traffic(f"{now.instance.url}/app") as seen:
            for pid in pids_on(now.hosts, 1, "proxy"):
                kill(pid)
            await until_async(lambda: serves(now.instance.url_of(1)), "its successor serves", 60.0)
        now.report(seen)
        async with traffic(f"{now.instance.url}/app") as seen:
            under_way = seen.gets.in_flight + seen.posts.in_flight
            for pid in pids_on(now.hosts, 0, "proxy"):
                kill(pid)
            await until_async(lambda: serves(now.instance.url), "its successor serves", 60.0)
        failed = len(seen.gets.failures) + len(seen.posts.failures)
        say(
            f"the one that is asked was killed with {under_way} under way: {failed} lost with their "
            "connections, and no others"
        )
        late = [answer for answer in seen.gets.failures if answer.status]
        require(not late, f"answered with failures: {told(late)}")


async def serves(url: str) -> bool:
    """The application answers there."""
    return (await get(f"{url}/app?id=x")).status == 200


async def head(tls: bool) -> None:
    """End Ray's head process, without a store that outlives it."""
    async with scene(2, 2, tls=tls) as now, traffic(f"{now.instance.url_of(1)}/app") as seen:
        now.hosts.kill_head_process()
        began = time.monotonic()
        say("Ray's head process is killed, and nothing keeps what it knew")
        with suppress(AssertionError):
            await until_true(lambda: seen.gets.failures, "a request fails", HEADLESS_S)
        gone_s = time.monotonic() - began
        say(
            f"requests fail after {gone_s:.0f} s: Ray ends its nodes, and all that runs there"
            if seen.gets.failures
            else f"no request has failed after {gone_s:.0f} s"
        )
        require(gone_s > 5, "requests fail at once")


@contextmanager
def redis() -> Iterator[int]:
    """A Redis outside of all hosts; its port is the value."""
    words = f"redis-server --port {REDIS_PORT} --save '' --bind 0.0.0.0 --protected-mode no"
    server = subprocess.Popen(shlex.split(words), stdout=subprocess.DEVNULL)
    try:
        yield REDIS_PORT
    finally:
        server.kill()
        server.wait()


async def head_redis(tls: bool) -> None:
    """End Ray's head process and start it again, over a Redis that stays."""
    if shutil.which("redis-server") is None:
        say("skipped: there is no redis-server (Debian: redis-server)")
        return
    with redis() as port:
        async with scene(2, 2, tls=tls, redis_port=port) as now:
            before = await now.instance.pids("app")
            async with traffic(f"{now.instance.url_of(1)}/app") as seen:
                words = now.hosts.kill_head_process()
                say("Ray's head process is killed")
                await asyncio.sleep(3.0)
                now.hosts.start_head_process(words)
                say("it is started again")
                await now.instance.wait(
                    lambda s: s.applications["app"].status == "RUNNING", "it is in order", 60.0
                )
                require(await now.instance.pids("app") == before, "replicas are other ones")
                victim = min(before)
                kill(victim)
                await now.instance.replicas("app", 2, without={victim})
                say("a replica that was killed then has a successor")
            now.report(seen, posts_may_fail=True)


async def delay(tls: bool) -> None:
    """Measure what is added to the delay of a network."""
    app = Counted.options(ray_actor_options={"num_cpus": 0.1, "label_selector": {"role": "far"}})
    labels = [{"role": "near"}, {"role": "far"}]
    async with scene(2, 1, tls=tls, app=app, labels=labels, delay_s=DELAY_S / 2) as now:
        measure = Path(__file__).parent / "namespaces_delay.py"
        near_host, far_host = now.hosts.hosts
        far_host.popen(
            *(sys.executable, str(measure), "echo", far_host.address), **now.hosts.environment
        )
        await until_true(lambda: PING_PORT in far_host.ports(""), "the echo listens", 30.0)
        # As those who measure: other work on this machine is nobody's subject.
        for pid in pids_on(now.hosts, 1, "replica"):
            os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)
        await asyncio.to_thread(
            near_host.run,
            *(sys.executable, str(measure), "ask", far_host.address),
            **{**now.hosts.environment, "REMORA_HOME": str(now.instance.home.root)},
        )
        line = near_host.output.strip().splitlines()[-1]
        say(f"with {DELAY_S * 1000:g} ms there and back: {line}")
        bare_s, handle_s = (float(word) / 1000 for word in line.split() if word[0].isdigit())
        require(handle_s - bare_s <= ADDED_S, f"a call adds {(handle_s - bare_s) * 1000:.2f} ms")


PARTS: dict[str, Callable[[bool], Coroutine[Any, Any, None]]] = {
    "near": near,
    "cut": cut,
    "blip": blip,
    "controller": controller,
    "proxy": proxy,
    "head": head,
    "head-redis": head_redis,
    "delay": delay,
}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--plain", action="store_true", help="without TLS between the hosts")
    options = parser.parse_args()
    if reason := why_not():
        print(f"Not here: {reason}.", file=sys.stderr)
        sys.exit(0)
    wrong = []
    for name in options.parts or PARTS:
        say(f"== {name}")
        try:
            asyncio.run(PARTS[name](not options.plain))
        except (Wrong, AssertionError) as error:
            wrong.append(name)
            say(f"WRONG: {error}")
    say(f"wrong: {', '.join(wrong) or 'nothing'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
