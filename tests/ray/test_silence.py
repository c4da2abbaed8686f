"""A process that lives and does nothing is found and ended, and nobody else is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.e2e.waiting import until_true

from remora.engine.ray import agent_watch, fleet, silence
from remora.engine.ray.agent_watch import AgentWatch
from remora.engine.ray.cluster import Cluster, RayActor
from remora.engine.ray.setup import NodeRecord, staff_key
from remora.engine.ray.silence import LOOK_EVERY_S, SILENT_S, Silence, beat_file, read_beats
from remora.engine.ray.staffing import Phase, Staff
from remora.errors import ConnectionLostError
from remora.home import Home
from remora.observe import heartbeat
from remora.observe.heartbeat import begin_to_beat

LOOKS = int(SILENT_S / LOOK_EVERY_S)


@given(st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=40))
def test_silent_is_who_gave_the_same_sign_for_the_whole_time(lives: list[set[str]]) -> None:
    watch: Silence[str] = Silence()
    signs, heard, now = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0.0), 0.0
    watch.look(signs, now)
    for living in lives:
        now += LOOK_EVERY_S
        for name in living:
            signs[name] += 1
            heard[name] = now
        found = watch.look(dict(signs), now)
        assert found == [name for name in "abc" if now - heard[name] >= SILENT_S]


def test_who_was_away_himself_knows_nothing() -> None:
    watch: Silence[str] = Silence()
    assert watch.look({"a": 1}, 0.0) == []
    # The whole machine stood still for an hour.
    assert watch.look({"a": 1}, 3600.0) == []
    found = [watch.look({"a": 1}, 3600.0 + n * LOOK_EVERY_S) for n in range(1, LOOKS + 1)]
    assert found == [[]] * (LOOKS - 1) + [["a"]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.make()
    return made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_watch, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_S", 0.05)


BEATS = """
import asyncio, sys
from pathlib import Path
from remora.observe import heartbeat
heartbeat.BEAT_EVERY_S = 0.05
async def main():
    import os
    path = Path(sys.argv[1]) / f"p{os.getpid()}.beat"
    heartbeat.begin_to_beat(path, "proxy-1")
    print(path, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def processes(home: Home) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-c", BEATS, str(home.sockets)]
    made = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in made:
        assert each.stdout is not None
        each.stdout.readline()
    yield made
    for each in made:
        each.kill()
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


def have_beaten(home: Home, living: list[Path], before: Mapping[Path, int]) -> bool:
    beats = read_beats(home)
    return all(beats[path] != before[path] for path in living)


async def test_what_is_stopped_is_ended_and_nothing_else(
    home: Home,
    quick: None,
    processes: list[subprocess.Popen[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lives, stopped = processes
    begin_to_beat(beat_file(home, "controller", os.getpid()), "controller")
    stopped.send_signal(signal.SIGSTOP)
    living = [home.sockets / f"p{lives.pid}.beat", beat_file(home, "controller", os.getpid())]
    watch: Silence[Path] = Silence()
    for number in range(LOOKS + 1):
        beats = read_beats(home)
        for path in watch.look(beats, number * LOOK_EVERY_S):
            silence.end_silent(path)
        await until_true(partial(have_beaten, home, living, beats), "those who live show it")
    assert stopped.wait(10) == -signal.SIGKILL
    assert f"proxy-1 (pid {stopped.pid}) has shown no sign of life for" in caplog.text
    assert lives.poll() is None
    assert set(read_beats(home)) == set(living)


async def test_who_got_the_pid_of_one_that_is_gone_is_left_alone(home: Home) -> None:
    path = beat_file(home, "proxy", os.getpid())
    path.write_text("1 proxy-1")
    silence.end_silent(path)
    assert not path.exists()


class Head(Cluster):
    """One node with an agent."""

    def __init__(self, pid: int) -> None:
        super().__init__("test")
        self.pid = pid
        self.started: list[str] = []
        #: Without its record nobody finds it.
        self.phase: Phase | None = None

    def get(self, key: str) -> bytes | None:
        if self.phase is not None:
            is_phase = key == staff_key("n1")
            return msgspec.msgpack.encode(Staff(self.phase, 0.0)) if is_phase else None
        return msgspec.msgpack.encode(NodeRecord("n1", "unix:/a"))

    def actors(self) -> dict[str, RayActor]:
        name = fleet.agent_name("n1")
        return {name: RayActor(name, self.pid, 0, "n1")}

    def start_again(self, name: str) -> None:
        self.started.append(name)


@pytest.mark.parametrize("pid", [7, 0])
async def test_an_agent_that_does_not_answer_is_started_again_unless_it_is_on_its_way(
    pid: int, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, asked, answers = Head(pid), 0, True

    async def give(*_: Any) -> None:
        nonlocal asked
        asked += 1
        if not answers:
            raise ConnectionLostError("nobody there")

    async def ask(call: Any, /, *args: Any) -> Any:
        return call(*args)

    monkeypatch.setattr(agent_watch, "ask_agent", give)
    monkeypatch.setattr(silence, "SILENT_S", 0.6)
    watch = AgentWatch(head, "token", {"n1": SimpleNamespace()}, cast(Any, ask))
    watching = asyncio.create_task(watch.watch())
    await until_true(lambda: asked >= 40, "it is asked")
    assert head.started == []
    answers, asked = False, 0
    if pid:
        await until_true(lambda: bool(head.started), "it is started again")
        assert head.started == ["agent@n1"]
    else:
        await until_true(lambda: asked >= 60, "it is asked")
        assert head.started == []
    watching.cancel()


@pytest.mark.parametrize("phase", [Phase.HERE, Phase.LEAVING])
async def test_an_agent_that_nobody_finds_is_started_again_unless_it_leaves(
    phase: Phase, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, num_looks = Head(7), 0
    head.phase = phase

    async def ask(call: Any, /, *args: Any) -> Any:
        nonlocal num_looks
        num_looks += 1
        return call(*args)

    monkeypatch.setattr(silence, "SILENT_S", 0.2)
    watch = AgentWatch(head, "token", {"n1": SimpleNamespace()}, cast(Any, ask))
    watching = asyncio.create_task(watch.watch())
    if phase is Phase.HERE:
        await until_true(lambda: bool(head.started), "it is started again")
    else:
        await until_true(lambda: num_looks >= 100, "it is looked for")
        assert head.started == []
    watching.cancel()
