"""Large values between real processes, which are killed while they hold each other's memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e.apps import Keeper
from tests.e2e.instances import Instance
from tests.e2e.processes import kill
from tests.e2e.waiting import until_async, until_true

from remora.errors import ReplicaDiedError
from remora.transport.arena import arena

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

MIB = 1024 * 1024


def mapped_files(pid: int) -> set[str]:
    """Files of arenas that a process has mapped, each by its number in the kernel."""
    found = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:remora" in line:
                found.add(line.split()[4])
    return found


def own_files() -> set[str]:
    """The files of this process's own arena."""
    segment = arena()._segment
    return set() if segment is None else {str(os.fstat(segment.fd).st_ino)}


@contextlib.contextmanager
def script(instance: Instance, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run code in a process of its own that calls the instance."""
    head = f"""
import asyncio, numpy as np, sys
from remora.home import Home
from remora.handle import DeploymentHandle
from remora.router.process import use_instance
use_instance(Home.locate({str(instance.home.root)!r}), "script")
handle = DeploymentHandle("Keeper", "keeper")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", head + body],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_killed_replica_takes_its_memory_along_and_not_what_we_hold(
    shared: Instance,
) -> None:
    async with shared.running(Keeper.bind(), "keeper"):
        handle: Any = shared.handle("Keeper", "keeper")
        (pid,) = await shared.replicas("keeper", 1)
        answer: Any = None
        got: Any = None
        for value in range(4):
            await handle.keep.remote(np.full(MIB, value, np.uint8))
            answer = await handle.make.remote(MIB, 40 + value)
        theirs = mapped_files(os.getpid()) - own_files()
        assert len(theirs) == 1  # the last answer lies in the replica's memory
        assert own_files() <= mapped_files(pid)
        mine = own_files()
        pending = handle.hold.remote(np.full(MIB, 9, np.uint8))
        kill(pid)
        with pytest.raises(ReplicaDiedError):
            await pending
        await shared.replicas("keeper", 1, without={pid})
        # What the replica may have been reading is not used again, and nobody has it any more.
        await until_true(lambda: not mine & mapped_files(os.getpid()), "our memory is freed")
        assert (answer == 43).all()
        for value in range(4):
            got = await handle.make.remote(MIB, value)
            assert (got == value).all()
        assert (answer == 43).all()
        del answer, got
        await until_true(lambda: not theirs & mapped_files(os.getpid()), "theirs is freed")


async def test_a_killed_caller_leaves_nothing_behind(shared: Instance) -> None:
    body = """
async def main():
    for value in range(4):
        await handle.keep.remote(np.full(1 << 20, value, np.uint8))
        answer = await handle.make.remote(1 << 20, value)
    handle.hold.remote(answer)
    await handle.values.remote()  # behind the other: that one has begun
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    async with shared.running(Keeper.bind(), "keeper"):
        handle: Any = shared.handle("Keeper", "keeper")
        (pid,) = await shared.replicas("keeper", 1)
        with script(shared, body) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert mapped_files(pid) & mapped_files(process.pid)
            theirs = mapped_files(pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
        # The replica still holds what the caller sent before it died, as it was.
        assert await handle.values.remote() == [0, 1, 2, 3]
        await handle.drop.remote()
        await until_true(lambda: not theirs & mapped_files(pid), "the replica freed it all")


async def test_a_caller_that_ends_with_calls_and_answers_in_its_hands_says_nothing(
    shared: Instance,
) -> None:
    body = """
import threading
async def main():
    global answers
    answers = [await handle.make.remote(1 << 20, n) for n in range(4)]
    kept = [handle.keep.remote(answers[n]) for n in range(4)]
    answers.append([kept, await asyncio.gather(*kept)])
    answers.append(answers)
asyncio.run(main())
handle.keep.remote(answers[0]).result()
under_way = handle.hold.remote(answers[0])
held = [handle.make.remote(1 << 20, n).result() for n in range(4)]
print(int(held[3][0]), int(answers[3][0]))
"""
    async with shared.running(Keeper.bind(), "keeper"):
        with script(shared, body) as process:
            out, said = await asyncio.to_thread(process.communicate, timeout=30)
        assert (out, said, process.returncode) == ("3 3\n", "", 0)


# -- answers as arguments: a process that makes them, one that takes them, and one between them ----


@contextlib.asynccontextmanager
async def maker_and_taker(instance: Instance) -> AsyncIterator[tuple[Any, Any]]:
    """Handles to two deployments in processes of their own."""
    async with instance.running(Keeper.bind(), "maker"), instance.running(Keeper.bind(), "taker"):
        yield instance.handle("Keeper", "maker"), instance.handle("Keeper", "taker")


async def made_in_one_file(instance: Instance, maker: Any, taker: Any) -> set[str]:
    """Wait until the taker has learned to read the maker's memory; returns the maker's file."""
    (made,) = await instance.pids("maker")
    (took,) = await instance.pids("taker")

    async def learned() -> set[str]:
        await taker.keep.remote(maker.make.remote(MIB, 0))
        await taker.drop.remote()
        return mapped_files(made) & mapped_files(took)

    return await until_async(learned, "the taker reads the maker's memory")


async def test_what_a_killed_maker_has_made_is_read_to_the_end(shared: Instance) -> None:
    async with maker_and_taker(shared) as (maker, taker):
        theirs = await made_in_one_file(shared, maker, taker)
        (made,) = await shared.pids("maker")
        (took,) = await shared.pids("taker")
        answers = [maker.make.remote(MIB, 60 + n) for n in range(4)]
        for answer in answers:
            await taker.keep.remote(answer)
        assert theirs <= mapped_files(os.getpid())
        under_way = maker.hold.remote(np.zeros(1))
        await maker.values.remote()  # behind the other: that one has begun
        kill(made)
        with pytest.raises(ReplicaDiedError):
            await taker.keep.remote(under_way)
        await shared.replicas("maker", 1, without={made})
        # Nobody has that memory but for what is still used, and it goes on as well.
        assert await taker.values.remote() == [60, 61, 62, 63]
        assert (await answers[3] == 63).all()
        await taker.drop.remote()
        for answer in (*answers, maker.make.remote(MIB, 64)):
            await taker.keep.remote(answer)
        assert await taker.values.remote() == [60, 61, 62, 63]
        await taker.drop.remote()
        del answer, answers, under_way
        await until_true(lambda: not theirs & mapped_files(took), "the taker lets go of it")
        await until_true(lambda: not theirs & mapped_files(os.getpid()), "so does the caller")


async def test_what_a_killed_taker_was_reading_is_given_up_by_all(shared: Instance) -> None:
    async with maker_and_taker(shared) as (maker, taker):
        theirs = await made_in_one_file(shared, maker, taker)
        (made,) = await shared.pids("maker")
        (took,) = await shared.pids("taker")
        answer = maker.make.remote(MIB, 70)
        pending = taker.hold.remote(answer)

        async def is_held() -> bool:
            return bool(await taker.values.remote() == [70])

        # A call whose argument is still on its way is overtaken by one that has none.
        await until_async(is_held, "the taker holds the answer")
        kill(took)
        with pytest.raises(ReplicaDiedError):
            await pending
        assert (await answer == 70).all()
        await shared.replicas("taker", 1, without={took})
        del answer, pending
        await until_true(lambda: not theirs & mapped_files(made), "the maker gives its file up")
        await until_true(lambda: not theirs & mapped_files(os.getpid()), "so does the caller")
        await made_in_one_file(shared, maker, taker)
        for n in range(4):
            await taker.keep.remote(maker.make.remote(MIB, 80 + n))
        assert await taker.values.remote() == [80, 81, 82, 83]


async def test_a_killed_caller_leaves_the_taker_what_the_maker_made(shared: Instance) -> None:
    body = """
maker = DeploymentHandle("Keeper", "maker")
taker = DeploymentHandle("Keeper", "taker")
async def main():
    for line in sys.stdin:
        await taker.keep.remote(maker.make.remote(1 << 20, int(line)))
        print("kept", flush=True)
asyncio.run(main())
"""
    async with maker_and_taker(shared) as (maker, taker):
        (made,) = await shared.replicas("maker", 1)
        (took,) = await shared.replicas("taker", 1)
        with script(shared, body) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for value in (1, 1, 1, *range(90, 94)):
                if value == 90:
                    await taker.drop.remote()
                process.stdin.write(f"{value}\n")
                process.stdin.flush()
                assert await asyncio.to_thread(process.stdout.readline) == "kept\n"
            theirs = mapped_files(made) & mapped_files(took)
            assert theirs & mapped_files(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
        # Whatever the maker makes now lies elsewhere.
        for value in range(20):
            assert int((await maker.make.remote(MIB, value))[0]) == value
        assert await taker.values.remote() == [90, 91, 92, 93]
        await taker.drop.remote()
        await until_true(lambda: not theirs & mapped_files(took), "the taker lets go of it")
        await until_true(lambda: not theirs & mapped_files(made), "so does the maker")
