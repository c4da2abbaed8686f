"""One program at a time sets up the instance of a cluster, whoever dies half-way."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster as RayCluster

from remora.config import EngineOptions
from remora.engine.claim import Claim
from remora.engine.launch import LaunchSetup, launch
from remora.engine.ray import cluster as rays
from remora.engine.ray import fleet, host, turns
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.host import Host, Options
from remora.engine.ray.own_turn import own_turn
from remora.engine.ray.setup import InstanceSetup, NodeRecord, find_setup
from remora.engine.ray.turns import Turn
from remora.errors import InstanceError
from remora.home import Home


class Program:
    """Somebody who takes a turn, one question after the other."""

    def __init__(self, name: str) -> None:
        self.turn = Turn(holder=name, job=name)
        self.asking: Generator[turns.Question, Any, int | Turn] | None = None
        self.answer: Any = None
        self.number = 0
        self.is_dead = False

    @property
    def holds(self) -> bool:
        return bool(self.number) and not self.is_dead

    def step(self, store: dict[int, Turn], others: dict[str, Program], *, lost: bool) -> None:
        """Ask one question, or begin anew; `lost`: Ray's client had to ask it twice."""
        if self.is_dead:
            return
        if self.number:
            store[self.number] = msgspec.structs.replace(self.turn, is_over=True)
            self.number, self.asking = 0, None
            return
        if self.asking is None:
            self.asking, self.answer = turns.take(self.turn), None
        try:
            question = self.asking.send(self.answer)
        except StopIteration as end:
            self.asking = None
            if isinstance(end.value, int):
                self.number = end.value
            return
        match question:
            case turns.Numbers():
                self.answer = list(store)
            case turns.Read(number):
                self.answer = store.get(number)
            case turns.Add(number, turn):
                store.setdefault(number, turn)
                self.answer = lost
            case turns.Remove(number):
                self.answer = store.pop(number, None)
            case turns.IsDead(job):
                self.answer = others[job].is_dead


@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["go"] * 8 + ["lost", "die"]))),
)
def test_no_two_have_their_turn_at_once_and_a_dead_one_holds_up_nobody(
    steps: list[tuple[int, str]],
) -> None:
    programs = [Program(name) for name in "abcde"]
    others = {each.turn.job: each for each in programs}
    store: dict[int, Turn] = {}
    for who, what in steps:
        if what == "die":
            programs[who].is_dead = True
        else:
            programs[who].step(store, others, lost=what == "lost")
        assert sum(each.holds for each in programs) <= 1
    # Whatever has happened: one more, alone, gets its turn when those who live have had theirs.
    for each in programs[:4]:
        each.is_dead = each.is_dead or not each.holds
        each.step(store, others, lost=False)
    last = programs[4]
    for _ in range(12):
        if not last.number:
            last.step(store, others, lost=False)
    assert last.holds
    assert list(store) == [last.number]


class FakeCluster:
    """Ray's store in memory."""

    namespace = "test"

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def add(self, key: str, value: bytes) -> None:
        self.values.setdefault(key, value)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in list(self.values) if key.startswith(prefix)]

    def actor(self, name: str) -> Any:
        # Made by whoever has set the instance up.
        return self.values.get(name)


def test_of_two_that_start_at_once_one_sets_up_and_the_other_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, looked = FakeCluster(), threading.Barrier(2, timeout=0.3)
    node = RayNode("n1", "127.0.0.1", {}, {}, True, "/session", False)
    door = NodeRecord("n1", "", "http://door")
    set_up = []

    def look(cluster: Cluster) -> InstanceSetup | None:
        found = find_setup(cluster)
        # Who comes alone to here waits for the other one first, in vain.
        with suppress(threading.BrokenBarrierError):
            looked.wait()
        return found

    def start(self: Host, *_: object, **__: object) -> NodeRecord:
        set_up.append(self._setup.token)
        cluster.put(fleet.CONTROLLER, b"there")
        return door

    for name, value in (
        ("connect", lambda *_, **__: False),
        ("nodes", lambda: [node]),
        ("this_node", lambda: "n1"),
        ("this_job", lambda: "01"),
        ("is_over", lambda _: False),
    ):
        monkeypatch.setattr(rays, name, value)
    monkeypatch.setattr(host, "find_setup", look)
    monkeypatch.setattr(host, "join", lambda _: None)
    monkeypatch.setattr(host, "kill_all", lambda *_: None)
    monkeypatch.setattr(host, "remove_groups", lambda *_: None)
    monkeypatch.setattr(fleet, "ensure_agent", lambda *_: door)
    monkeypatch.setattr(Host, "_start", start)

    def begin(name: str) -> Host:
        home = Home(tmp_path / name)
        options = Options(str(home.root), {}, "", "", 1.0)
        made = Host(options, Claim.take(home))
        made._cluster = cast(Cluster, cluster)
        made.begin()
        return made

    with ThreadPoolExecutor(2) as pool:
        hosts = list(pool.map(begin, ("one", "other")))
    assert len(set_up) == 1
    assert sorted(each.joined for each in hosts) == [False, True]
    assert {each._setup.token for each in hosts} == set(set_up)
    for each in hosts:
        each._claim.close()
        each._wake_read.close()
        each._wake_write.close()


_DIES = """
import os, sys, ray
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.own_turn import own_turn
ray.init(sys.argv[1], namespace="turns", logging_level="ERROR", log_to_driver=False)
with own_turn(Cluster("turns"), 5.0):
    print("has it", flush=True)
    sys.stdin.read()
    os._exit(1)
"""


def test_a_program_that_dies_in_its_turn_holds_up_nobody(cluster: RayCluster) -> None:
    ours = Cluster("turns")
    command = [sys.executable, "-c", _DIES, cluster.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as dies:
        assert dies.stdin is not None
        assert dies.stdout is not None
        assert dies.stdout.readline() == b"has it\n"
        told = pytest.raises(InstanceError, match=rf"Another program \(pid {dies.pid} on node ")
        with told, own_turn(ours, 0.0):
            pass
        dies.stdin.close()
        with own_turn(ours, 30.0):
            assert dies.wait(5) == 1
    with own_turn(ours, 0.0):
        assert ours.keys("turn/") == ["turn/3"]


def test_who_is_refused_leaves_the_folder_of_the_instance_that_is_there(tmp_path: Path) -> None:
    home = Home(tmp_path / ("long" * 20))
    claim = Claim.take(home)
    # So early that nothing is in it.
    assert not any(home.sockets.iterdir())
    second = launch(home, LaunchSetup(engine=EngineOptions(engine="ray")), bound=False)
    try:
        with pytest.raises(InstanceError, match=r"runs in .* already"):
            second.wait_ready(60.0)
        assert second.wait_gone(60.0)
        assert home.sockets.is_dir()
    finally:
        second.release()
        claim.leave()
