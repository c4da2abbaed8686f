"""The order of samples, and what an error of a target does."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import samples
from benchmarks.processes import TargetError
from benchmarks.rows import Sampling, select_rows
from benchmarks.session import Effort, Session
from benchmarks.sides import LIMIT, REMORA, Side
from benchmarks.targets import Target


class FakeTarget:
    """Records what happens to it in a journal shared by all."""

    def __init__(self, name: str, journal: list[str], *, starts: bool = True) -> None:
        self.name = name
        self.journal = journal
        self.starts = starts

    def start(self) -> float:
        self.journal.append(f"start {self.name}")
        if not self.starts:
            raise TargetError("exited with status 1")
        return 0.25

    def stop(self) -> None:
        self.journal.append(f"stop {self.name}")


def side(name: str, journal: list[str], *, starts: bool = True) -> Side:
    def make(scratch: Path) -> Target:
        return FakeTarget(name, journal, starts=starts)

    return Side(name, {"hello": make, "handle": make})


EFFORT = Effort(rounds=2, duration_s=3, start_rounds=2, memory_rounds=1)


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sample by writing `<side> <seconds>` into the journal."""
    entries: list[str] = []

    def sample(target: Target, duration_s: int) -> float:
        assert isinstance(target, FakeTarget)
        entries.append(f"{target.name} {duration_s}")
        return 10.0

    monkeypatch.setitem(samples.SAMPLES, Sampling.HTTP_RATE, sample)
    monkeypatch.setitem(samples.SAMPLES, Sampling.CALL_RATE, sample)
    return entries


def run(keys: str, sides: list[Side], tmp_path: Path) -> Session:
    session = Session(EFFORT, tmp_path, lambda line: None)
    session.measure(select_rows(keys), sides)
    return session


def test_sides_take_turns_and_swap_places(journal: list[str], tmp_path: Path) -> None:
    session = run("http", [side(LIMIT, journal), side(REMORA, journal)], tmp_path)
    assert journal == [
        *["start limit", "start remora"],
        *["limit 1", "remora 1"],  # uncounted
        *["limit 3", "remora 3"],
        *["remora 3", "limit 3"],
        *["stop remora", "stop limit"],
    ]
    assert session.outcomes["http", REMORA].samples == [10.0, 10.0]


def test_limit_is_not_measured_where_a_row_has_none(journal: list[str], tmp_path: Path) -> None:
    session = run("handle32", [side(LIMIT, journal), side(REMORA, journal)], tmp_path)
    assert set(session.outcomes) == {("handle32", REMORA)}
    assert "start limit" not in journal


def test_side_that_does_not_start_leaves_the_others_alone(
    journal: list[str], tmp_path: Path
) -> None:
    sides = [side(LIMIT, journal), side(REMORA, journal, starts=False)]
    session = run("http", sides, tmp_path)
    assert session.outcomes["http", REMORA].error == "exited with status 1"
    assert session.outcomes["http", LIMIT].samples == [10.0, 10.0]


def test_failed_sample_ends_its_row_and_renews_the_target(
    journal: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: Target, duration_s: int) -> float:
        journal.append("fail")
        raise TargetError("lost 3 requests")

    monkeypatch.setitem(samples.SAMPLES, Sampling.HTTP_P50, fail)
    session = run("http,http1", [side(REMORA, journal)], tmp_path)
    assert journal.count("fail") == 1
    assert journal.count("start remora") == 2
    assert session.outcomes["http1", REMORA].error == "lost 3 requests"
    assert session.outcomes["http", REMORA].samples == [10.0, 10.0]


def test_first_start_does_not_count_and_every_start_is_stopped(
    journal: list[str], tmp_path: Path
) -> None:
    session = run("start_hello", [side(REMORA, journal)], tmp_path)
    assert session.outcomes["start_hello", REMORA].samples == [0.25, 0.25]
    assert journal.count("start remora") == 3
    assert journal[-1] == "stop remora"
