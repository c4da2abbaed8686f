"""Templates that hold something: who shares one, and when one is given up."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from remora.engine import linux
from remora.engine.local.link import TemplateCalls, TemplateLink
from remora.engine.local.loop import Loop
from remora.engine.local.processes import Fork, Gone, ProcessTable
from remora.engine.local.protocol import LineBuffer, Message, Peer, encode
from remora.engine.local.shared_template import IDLE_S, SharedTemplates, key_of
from remora.engine.local.threads import hold_threads, release_threads
from remora.home import Home


def request(number: int = 1, names: tuple[str, ...] = ("m:load",), **env: str) -> Message:
    shared = {"names": list(names), "version": "1", "sys_path": [], "cwd": ""}
    return {"op": "fork", "id": f"a/d#{number}", "env": env, "shared": shared}


def test_what_is_loaded_depends_on_the_environment_but_not_on_gpus() -> None:
    assert key_of(request(1)) == key_of(request(2))
    assert key_of(request(CUDA_VISIBLE_DEVICES="0")) == key_of(request(CUDA_VISIBLE_DEVICES="1"))
    assert key_of(request(A="1")) != key_of(request(A="2"))
    assert key_of(request(names=("m:other",))) != key_of(request())


class Rig:
    """Templates whose other ends are in the hands of the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = Loop()
        self.reports: list[Message] = []
        self.lost: list[tuple[int, str]] = []
        self.killed: list[int] = []
        #: The channel and the pipe for reports of each template that was made.
        self.ends: list[tuple[socket.socket, int]] = []
        self.shared: list[Any] = []
        monkeypatch.setattr(TemplateLink, "fork", self.fork)
        monkeypatch.setattr(linux, "send_signal", lambda pid, _: self.killed.append(pid))
        calls = TemplateCalls(
            sessions=set,
            report=self.reports.append,
            lost=lambda generation, why: self.lost.append((generation, why)),
            close_in_child=lambda: None,
            log=lambda _: None,
        )
        self.templates = SharedTemplates(self.loop, Home(folder), "token", calls)

    def fork(self, generation: int, **given: Any) -> TemplateLink:
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        os.set_blocking(read, False)
        self.ends.append((theirs, write))
        self.shared.append(given["shared"])
        return TemplateLink(generation, 1000 + len(self.ends), Peer(ours), read)

    def orders(self, number: int) -> list[str]:
        channel = self.ends[number][0]
        channel.setblocking(False)
        return [each["id"] for each in LineBuffer().feed(channel.recv(65536))]

    def report(self, number: int, **message: Any) -> None:
        os.write(self.ends[number][1], encode(message))
        self.loop.run_once(0.0)

    def die(self, number: int) -> None:
        channel, write = self.ends[number]
        channel.close()
        os.close(write)
        for _ in range(3):
            self.loop.run_once(0.0)

    def close(self) -> None:
        for channel, write in self.ends:
            channel.close()
            try:
                os.close(write)
            except OSError:
                pass
        self.templates.close_in_child()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(tmp_path, monkeypatch)
    yield made
    made.close()


def test_processes_that_share_are_forked_from_one_template(rig: Rig) -> None:
    first, has_to_load = rig.templates.tell(request(1, CUDA_VISIBLE_DEVICES="0"))
    assert has_to_load
    assert rig.templates.tell(request(2, CUDA_VISIBLE_DEVICES="1"))[0] == first
    assert rig.templates.tell(request(3, names=("other",)))[0] != first
    assert rig.orders(0) == ["a/d#1", "a/d#2"]
    assert rig.orders(1) == ["a/d#3"]
    # One that loads sees all GPUs of the instance; it must use none.
    assert rig.shared[0]["env"] == {}
    rig.report(0, state="forked", id="a/d#1", pid=7)
    assert rig.templates.tell(request(4))[1] is False
    assert [each["name"] for each in rig.templates.processes()] == ["template-1", "template-2"]


def test_one_that_cannot_load_says_why_and_the_next_gets_a_new_one(rig: Rig) -> None:
    first, _ = rig.templates.tell(request(1))
    rig.report(0, state="failed", id="a/d#1", pid=0, reason="no such model")
    rig.die(0)
    assert rig.lost == [(first, "no such model")]
    second, has_to_load = rig.templates.tell(request(2))
    assert (second != first, has_to_load) == (True, True)


def test_one_that_dies_is_told_by_its_pid(rig: Rig) -> None:
    rig.templates.tell(request(1))
    rig.die(0)
    assert [why for _, why in rig.lost] == [
        "the process (pid 1001) that loads what it shares with others has ended"
    ]


def test_one_that_nobody_uses_is_ended_after_a_while(rig: Rig) -> None:
    rig.templates.tell(request(1))
    rig.templates.tell(request(2, names=("other",)))
    rig.report(0, state="forked", id="a/d#1", pid=7)
    used = [request(9, names=("other",))]
    assert rig.templates.end_unused([request(1), *used], 100.0) is None
    assert rig.templates.end_unused(used, 100.0) == 100.0 + IDLE_S
    assert rig.templates.end_unused(used, 99.0 + IDLE_S) == 100.0 + IDLE_S
    # Used again in between: the time begins anew.
    rig.templates.tell(request(3))
    assert rig.templates.end_unused(used, 101.0 + IDLE_S) == 101.0 + 2 * IDLE_S
    assert rig.templates.end_unused(used, 101.0 + 2 * IDLE_S) is None
    assert rig.killed == [1001]
    assert rig.templates.tell(request(4))[1]


def test_one_that_loads_for_nobody_is_ended_at_once(rig: Rig) -> None:
    hung, _ = rig.templates.tell(request(1))
    assert rig.templates.end_unused([request(1)], 100.0) is None
    assert rig.killed == []
    assert rig.templates.end_unused([], 101.0) is None
    assert rig.killed == [1001]
    # The next does not wait behind it.
    assert rig.templates.tell(request(2))[0] != hung
    assert rig.orders(1) == ["a/d#2"]


def test_what_a_lost_template_was_told_to_fork_has_failed() -> None:
    table = ProcessTable()
    for number in (1, 2, 3):
        (order,) = table.add(request(number))
        assert isinstance(order, Fork)
        table.asked(order.process, -1 if number < 3 else 1)
    gone = table.failed_to_load(-1, "no such model")
    assert [each.reason for each in gone if isinstance(each, Gone)] == [
        "could not start: no such model",
        "could not start: no such model",
    ]
    assert [each.process_id for each in table.all()] == ["a/d#3"]


def test_libraries_have_one_thread_while_something_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    counts: list[int] = []
    torch = ModuleType("torch")
    torch.set_num_threads = counts.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    saved = hold_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
    # What the user says of torch counts.
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    release_threads(saved, {})
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ
    release_threads(saved, {"OMP_NUM_THREADS": "2"})
    release_threads({**saved, "OMP_NUM_THREADS": None}, {})
    assert counts == [3, 2, len(os.sched_getaffinity(0))]
