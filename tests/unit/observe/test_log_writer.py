"""The writer loses nothing that it has room for, and never makes anybody wait."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from remora.observe import log_writer as module
from remora.observe.log_files import LogFile, old_path
from remora.observe.log_lines import Lines, Printed, Source
from remora.observe.log_writer import LogWriter
from remora.options.logging import LoggingConfig

LINES = Lines(Source("controller", "1"), LoggingConfig())


class Disk(LogFile):
    """A file whose disk can stall, and be full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, max_bytes=10**9, max_old=1)
        self.goes = threading.Event()
        self.goes.set()
        self.waits = threading.Event()
        self.room = 10**9

    def write(self, data: bytes) -> None:
        if not self.goes.is_set():
            self.waits.set()
            self.goes.wait()
        taken, self.room = data[: self.room], max(0, self.room - len(data))
        super().write(taken)
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "a.log")
    yield made
    made.goes.set()
    made.close()


def say(writer: LogWriter, text: str) -> None:
    writer.put(Printed("STDOUT", text, None), len(text))


def messages(path: Path) -> list[str]:
    return [line.partition(" -- ")[2] for line in path.read_text().splitlines()]


def test_everything_is_written_in_order(disk: Disk) -> None:
    writer = LogWriter(LINES, disk)
    for number in range(3000):
        say(writer, str(number))
    writer.close()
    assert messages(disk.path) == [str(number) for number in range(3000)]


def test_many_threads_lose_nothing(disk: Disk) -> None:
    writer = LogWriter(LINES, disk)

    def work(name: int) -> None:
        for number in range(500):
            say(writer, f"{name} {number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    found = messages(disk.path)
    assert len(found) == 2000
    for name in range(4):
        own = [each for each in found if each.startswith(f"{name} ")]
        assert own == [f"{name} {number}" for number in range(500)]


def test_a_disk_that_stalls_makes_nobody_wait_and_the_loss_is_counted(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    writer = LogWriter(LINES, disk)
    disk.goes.clear()
    say(writer, "first")
    assert disk.waits.wait(5)
    for number in range(25):
        say(writer, str(number))
    disk.goes.set()
    writer.close()
    found = messages(disk.path)
    assert found == [
        "first",
        "15 lines of this log are lost: they came faster than the disk takes them",
        *(str(number) for number in range(10)),
    ]


def test_long_lines_fill_the_queue_sooner(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_CHARS", 100)
    writer = LogWriter(LINES, disk)
    disk.goes.clear()
    say(writer, "first")
    assert disk.waits.wait(5)
    for _ in range(5):
        say(writer, "x" * 60)
    disk.goes.set()
    writer.close()
    assert sum("x" in each for each in messages(disk.path)) == 2


def test_a_full_disk_loses_lines_and_says_how_many_when_there_is_room(disk: Disk) -> None:
    writer = LogWriter(LINES, disk)
    say(writer, "before")
    until_written(writer)
    disk.room = 10
    for number in range(7):
        say(writer, f"lost {number}")
        until_written(writer)
    disk.room = 10**9
    say(writer, "after")
    writer.close()
    found = disk.path.read_text().splitlines()
    assert found[0].endswith("-- before")
    # A part of the first one that had no room, ended by the next line.
    assert len(found[1]) == 10
    assert found[2].endswith("-- 7 lines of this log are lost: No space left on device")
    assert found[3].endswith("-- after")


def test_the_file_is_turned_over(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a.log", max_bytes=4096, max_old=2)
    writer = LogWriter(LINES, file)
    for _ in range(5):
        for _ in range(50):
            say(writer, "x" * 60)
        until_written(writer)
    writer.close()
    file.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert old_path(file.path, 1).stat().st_size >= 4096


def test_what_was_logged_before_a_change_is_where_it_belongs(tmp_path: Path, disk: Disk) -> None:
    writer = LogWriter(LINES, disk)
    other = LogFile(tmp_path / "b.log", max_bytes=10**6, max_old=1)
    said: list[Path] = []
    say(writer, "old")
    as_json = Lines(Source("controller", "1"), LoggingConfig(encoding="JSON"))
    writer.follow(as_json, other, said.append)
    say(writer, "new")
    writer.close()
    other.close()
    assert messages(disk.path) == ["old"]
    assert '"message": "new"' in other.path.read_text()
    assert said == [other.path]


def test_after_the_end_whoever_logs_writes(disk: Disk) -> None:
    writer = LogWriter(LINES, disk)
    say(writer, "one")
    writer.close()
    say(writer, "two")
    assert messages(disk.path) == ["one", "two"]


def test_a_fork_writes_its_own_lines_and_not_those_of_its_parent(disk: Disk) -> None:
    writer = LogWriter(LINES, disk)
    disk.goes.clear()
    say(writer, "parent")
    assert disk.waits.wait(5)
    say(writer, "waits")
    disk.goes.set()
    writer.start_over_in_child()
    say(writer, "child")
    assert messages(disk.path).count("child") == 1
    writer.close()
    assert messages(disk.path).count("waits") == 0


def test_nothing_logged_is_no_thread(disk: Disk) -> None:
    before = threading.active_count()
    writer = LogWriter(LINES, disk)
    writer.tend()
    writer.close()
    assert threading.active_count() == before


def until_written(writer: LogWriter) -> None:
    written = threading.Event()
    writer._do(written.set)
    assert written.wait(5)
