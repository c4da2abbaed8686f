"""Large values between real processes, which are killed while they hold each other's memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e.apps import Keeper
from tests.e2e.instances import Instance
from tests.e2e.processes import kill
from tests.e2e.waiting import until_true

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
