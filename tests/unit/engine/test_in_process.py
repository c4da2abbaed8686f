"""What a task that is a process ends with; the rest is in the contract of all engines."""

import asyncio
from pathlib import Path

import pytest

from remora.engine.base import EngineEvent, ProcessContext, ProcessExited, ProcessSpec
from remora.engine.in_process import InProcessEngine
from remora.home import Home


async def exit_of(engine: InProcessEngine) -> ProcessExited:
    events = engine.events()
    async with asyncio.timeout(5):
        while True:
            event: EngineEvent = await anext(events)
            if isinstance(event, ProcessExited):
                return event


@pytest.mark.parametrize(
    ("ends", "asked", "expected"),
    [
        ("by itself", False, True),
        ("by an error", False, False),
        ("cancelled", False, False),
        ("cancelled", True, True),
        ("by an error", True, True),
    ],
)
async def test_an_end_is_expected_if_it_was_asked_for_or_went_well(
    ends: str, asked: bool, expected: bool, remora_home: Path
) -> None:
    home = Home.locate(remora_home)
    home.make()
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None] | None] = []

    async def serve(context: ProcessContext) -> None:
        tasks.append(asyncio.current_task())
        try:
            await go_on.wait()
            if ends == "by an error":
                raise ValueError("it failed, as the user says")
        except asyncio.CancelledError:
            if ends == "by an error":
                raise ValueError("while it was stopped") from None
            raise
        finally:
            context.sockets["wire"].close()

    engine = InProcessEngine(home, serve)
    await engine.connect()
    await engine.start_process(ProcessSpec("app/d#1", "", "replica"))
    await asyncio.sleep(0)
    if asked:
        await engine.kill_process("app/d#1")
    elif ends == "cancelled":
        assert tasks[0] is not None
        tasks[0].cancel()
    else:
        go_on.set()
    assert (await exit_of(engine)).expected is expected
