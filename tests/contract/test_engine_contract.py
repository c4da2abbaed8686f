"""What every engine promises. One suite over all of them: a difference is a failing test."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.waiting import until_true

from remora.build.pinning import pinned
from remora.config import HTTPOptions
from remora.engine.base import (
    Engine,
    EngineEvent,
    NodeJoined,
    ProcessContext,
    ProcessExited,
    ProcessPreparing,
    ProcessSpec,
    ProcessStarted,
)
from remora.engine.in_process import InProcessEngine
from remora.engine.launch import EntryPoints, LaunchSetup, launch
from remora.engine.local.client import LocalEngine
from remora.home import Home
from remora.options.resources import RuntimeEnv
from remora.testing.fake_engine import FakeEngine
from remora.types import LOCAL_NODE
from remora.wire.holds import Hold

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

ENTRY_POINTS = Path(__file__).parent.parent / "e2e"


@contextlib.asynccontextmanager
async def local_engine(folder: Path) -> AsyncIterator[Engine]:
    home = Home.locate(folder)
    idle = EntryPoints("entrypoints:idle", "entrypoints:idle")
    launched = launch(home, LaunchSetup(HTTPOptions(host=None)), True, entry_points=idle)
    try:
        launched.wait_ready()
        engine = LocalEngine(home)
        try:
            yield engine
        finally:
            await engine.close()
    finally:
        launched.end(2.0)


@contextlib.asynccontextmanager
async def fake_engine(folder: Path) -> AsyncIterator[Engine]:
    engine = FakeEngine()
    # What the local engine finds out by trying.
    engine.fail_start = lambda spec: (
        "could not start: no such module" if spec.entrypoint.startswith("missing") else ""
    )
    yield engine
    await engine.close()


@contextlib.asynccontextmanager
async def in_process_engine(folder: Path) -> AsyncIterator[Engine]:
    home = Home.locate(folder)
    home.make()

    async def idle(context: ProcessContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            context.sockets["wire"].close()

    engine = InProcessEngine(home, idle)
    try:
        yield engine
    finally:
        await engine.shutdown()
        await engine.close()


ENGINES = {"fake": fake_engine, "in process": in_process_engine, "local": local_engine}

#: For what an engine without processes of its own cannot do.
of_processes = pytest.mark.of_processes
#: For what only the embedded engine does by itself.
of_one_machine = pytest.mark.of_one_machine
WITHOUT_PROCESSES = ("in process",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on the engines of its module, as far as they can do it."""
    if "engine" not in metafunc.fixturenames:
        return
    names = sorted(metafunc.module.ENGINES)
    if metafunc.definition.get_closest_marker("of_processes"):
        names = [name for name in names if name not in WITHOUT_PROCESSES]
    if metafunc.definition.get_closest_marker("of_one_machine"):
        names = [name for name in names if name == "local"]
    metafunc.parametrize("engine", names, indirect=True)


@pytest.fixture
def many() -> int:
    """How many processes are many."""
    return 8


@pytest.fixture
async def engine(
    request: pytest.FixtureRequest, remora_home: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    monkeypatch.setenv("PYTHONPATH", str(ENTRY_POINTS), prepend=os.pathsep)
    async with ENGINES[request.param](remora_home) as made:
        yield made


class Watch:
    """Reads events with a deadline."""

    def __init__(self, engine: Engine) -> None:
        self._events = engine.events()

    async def next(self) -> EngineEvent:
        return await asyncio.wait_for(anext(self._events), 8.0)

    async def started(self) -> ProcessStarted:
        event = await self.next()
        assert isinstance(event, ProcessStarted), event
        return event

    async def exited(self) -> ProcessExited:
        event = await self.next()
        assert isinstance(event, ProcessExited), event
        return event


async def connected(engine: Engine) -> Watch:
    await engine.connect()
    watch = Watch(engine)
    assert isinstance(await watch.next(), NodeJoined)
    return watch


def spec(name: str = "app/d#1") -> ProcessSpec:
    return ProcessSpec(name, "entrypoints:idle", f"remora: replica {name}")


async def test_events_begin_with_a_node_that_can_take_processes(engine: Engine) -> None:
    await engine.connect()
    event = await Watch(engine).next()
    assert isinstance(event, NodeJoined)
    assert event.node.resources["CPU"] >= 1
    assert not event.node.draining


async def test_a_started_process_is_reported_with_pid_and_address(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.start_process(spec())
    event = await watch.started()
    assert event.process_id == "app/d#1"
    assert event.pid > 0
    assert event.address


async def test_a_stopped_process_ends_as_expected(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.start_process(spec())
    await watch.started()
    await engine.stop_process("app/d#1", 5.0)
    event = await watch.exited()
    assert (event.process_id, event.expected) == ("app/d#1", True)
    assert event.reason


async def test_a_killed_process_ends_as_expected(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.start_process(spec())
    await watch.started()
    await engine.kill_process("app/d#1")
    event = await watch.exited()
    assert (event.process_id, event.expected) == ("app/d#1", True)


async def test_a_process_that_is_killed_while_it_starts_ends_in_one_exit(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.start_process(spec())
    await engine.kill_process("app/d#1")
    event = await watch.next()
    if isinstance(event, ProcessStarted):
        event = await watch.next()
    assert isinstance(event, ProcessExited)
    # Nothing of it follows: the next event is another process's.
    await engine.start_process(spec("app/d#2"))
    assert (await watch.started()).process_id == "app/d#2"


async def test_stopping_twice_gives_one_exit(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.start_process(spec())
    await watch.started()
    await engine.stop_process("app/d#1", 5.0)
    await engine.stop_process("app/d#1", 5.0)
    await watch.exited()
    await engine.start_process(spec("app/d#2"))
    assert (await watch.started()).process_id == "app/d#2"


@of_processes
async def test_of_two_stops_the_earlier_deadline_holds(engine: Engine, remora_home: Path) -> None:
    watch = await connected(engine)
    await engine.start_process(ProcessSpec("app/d#1", "entrypoints:stubborn", "remora: replica"))
    await watch.started()
    if isinstance(engine, FakeEngine):
        engine.processes["app/d#1"].is_stubborn = True
    else:
        await until_true((remora_home / "stubborn").exists, "SIGTERM is ignored")
    for timeout_s in (60.0, 0.1, 60.0):
        await engine.stop_process("app/d#1", timeout_s)
    assert (await watch.exited()).expected


@of_processes
async def test_what_cannot_start_is_one_unexpected_exit(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.start_process(ProcessSpec("app/d#1", "missing:main", "remora: replica"))
    event = await watch.exited()
    assert (event.process_id, event.expected) == ("app/d#1", False)
    assert event.reason.startswith("could not start")


async def test_an_unknown_id_is_no_error(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.stop_process("app/nobody#1", 0.0)
    await engine.kill_process("app/nobody#1")
    await engine.start_process(spec())
    await watch.started()


async def test_many_processes_have_addresses_of_their_own(engine: Engine, many: int) -> None:
    watch = await connected(engine)
    for number in range(many):
        await engine.start_process(spec(f"app/d#{number}"))
    events = [await watch.started() for _ in range(many)]
    assert len({event.process_id for event in events}) == many
    assert len({event.address for event in events}) == many


@of_processes
async def test_many_processes_have_pids_of_their_own(engine: Engine, many: int) -> None:
    watch = await connected(engine)
    for number in range(many):
        await engine.start_process(spec(f"app/d#{number}"))
    assert len({(await watch.started()).pid for _ in range(many)}) == many


async def test_system_processes_have_names_and_pids(engine: Engine) -> None:
    await connected(engine)
    found = await engine.system_processes()
    assert len({process.name for process in found}) == len(found)
    assert all(process.restarts >= 0 for process in found)


async def test_the_store_gives_back_what_was_put(engine: Engine) -> None:
    await connected(engine)
    assert await engine.get("a/1") is None
    await engine.put("a/1", b"\x00one")
    await engine.put("a/1", b"\x00two")
    assert await engine.get("a/1") == b"\x00two"


async def test_the_store_lists_keys_by_prefix_sorted(engine: Engine) -> None:
    await connected(engine)
    for key in ("b", "a/2", "a/1", "a%", "A/1"):
        await engine.put(key, b"")
    assert await engine.keys("a/") == ["a/1", "a/2"]
    assert await engine.keys("a%") == ["a%"]
    assert await engine.keys("") == sorted(["b", "a/2", "a/1", "a%", "A/1"])


async def test_the_store_forgets_and_an_unknown_key_is_no_error(engine: Engine) -> None:
    await connected(engine)
    await engine.put("a", b"1")
    await engine.delete("a")
    await engine.delete("a")
    assert await engine.get("a") is None


async def test_events_end_when_the_instance_is_shut_down(engine: Engine) -> None:
    watch = await connected(engine)
    await engine.shutdown()
    with pytest.raises(StopAsyncIteration):
        await watch.next()


async def test_nodes_say_whether_others_may_join(engine: Engine) -> None:
    await connected(engine)
    assert isinstance(engine.has_fixed_nodes, bool)


@of_one_machine
async def test_a_process_sees_the_gpus_that_are_held_for_it(engine: Engine) -> None:
    watch = await connected(engine)
    entry = "entrypoints:tells_gpu"
    hold = Hold(LOCAL_NODE, {"GPU": 0.5}, (3,))
    await engine.start_process(ProcessSpec("app/d#1", entry, "remora: replica", holds=(hold,)))
    await watch.started()
    assert (await watch.exited()).reason == "exit status 3"
    nothing = Hold(LOCAL_NODE, {"GPU": 0.0})
    await engine.start_process(ProcessSpec("app/d#2", entry, "remora: replica", holds=(nothing,)))
    await watch.started()
    assert (await watch.exited()).reason == "exit status 99"


def in_folder(folder: Path, name: str) -> ProcessSpec:
    """A process that exits with what is written in its working directory."""
    env = pinned(RuntimeEnv(working_dir=str(folder)))
    return ProcessSpec(
        name, "entrypoints:tells_environment", f"remora: replica {name}", runtime_env=env
    )


@of_one_machine
async def test_an_environment_is_built_and_told_once_and_used_again(
    engine: Engine, tmp_path: Path
) -> None:
    watch = await connected(engine)
    (tmp_path / "status").write_text("41")
    await engine.start_process(in_folder(tmp_path, "app/d#1"))
    event = await watch.next()
    assert isinstance(event, ProcessPreparing)
    assert (event.process_id, event.what) == ("app/d#1", f"copies {tmp_path} for it")
    await watch.started()
    assert (await watch.exited()).reason == "exit status 41"
    await engine.start_process(in_folder(tmp_path, "app/d#2"))
    await watch.started()
    assert (await watch.exited()).reason == "exit status 41"


@of_one_machine
async def test_an_environment_that_a_process_was_started_with_is_not_swept(
    engine: Engine, tmp_path: Path, remora_home: Path
) -> None:
    assert isinstance(engine, LocalEngine)

    async def swept() -> None:
        # As if it had been used last long ago.
        (complete,) = (remora_home / "environments").glob("*.complete")
        os.utime(complete, (0, 0))
        engine.sweep(())
        await engine._environments._sweep  # type: ignore[misc]

    watch = await connected(engine)
    (tmp_path / "status").write_text("41")
    spec = in_folder(tmp_path, "app/d#1")
    await engine.start_process(dataclasses.replace(spec, entrypoint="entrypoints:idle"))
    assert isinstance(await watch.next(), ProcessPreparing)
    await watch.started()
    # The process itself keeps it, whatever becomes of who started it.
    assert not engine._environments._held
    await swept()
    await engine.start_process(in_folder(tmp_path, "app/d#2"))
    await watch.started()
    assert (await watch.exited()).reason == "exit status 41"
    await engine.kill_process("app/d#1")
    await watch.exited()
    await swept()
    assert not list((remora_home / "environments").glob("folder-*"))


@of_one_machine
async def test_an_environment_that_cannot_be_built_is_one_unexpected_exit(
    engine: Engine, tmp_path: Path
) -> None:
    watch = await connected(engine)
    spec = in_folder(tmp_path, "app/d#1")
    tmp_path.rmdir()
    await engine.start_process(spec)
    assert isinstance(await watch.next(), ProcessPreparing)
    event = await watch.exited()
    assert not event.expected
    assert event.reason.startswith("could not start: its environment could not be built: ")
    assert "is not there any more" in event.reason


@of_one_machine
async def test_a_process_that_is_stopped_before_its_environment_is_built_ends_in_one_exit(
    engine: Engine, tmp_path: Path
) -> None:
    watch = await connected(engine)
    (tmp_path / "status").write_text("0")
    await engine.start_process(in_folder(tmp_path, "app/d#1"))
    await engine.kill_process("app/d#1")
    assert (await watch.exited()).expected
    await engine.start_process(spec("app/d#2"))
    assert (await watch.started()).process_id == "app/d#2"
