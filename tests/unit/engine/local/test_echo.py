"""What is appended to log files is shown, whole and in order, and nobody waits for who looks."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from remora.engine.local import echo as module
from remora.engine.local.echo import Echo


class Screen:
    """A pipe that an echo writes to."""

    def __init__(self) -> None:
        self._read, self.fd = os.pipe()
        os.set_blocking(self._read, False)

    def seen(self) -> bytes:
        found = b""
        while True:
            try:
                found += os.read(self._read, 65536)
            except BlockingIOError:
                return found

    def close(self) -> None:
        os.close(self._read)
        os.close(self.fd)


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.close()


@pytest.fixture
def echo(tmp_path: Path, screen: Screen) -> Iterator[Echo]:
    (tmp_path / "controller.log").write_bytes(b"of an earlier run\n")
    made = Echo(tmp_path, screen.fd)
    yield made
    made.close_in_fork()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_new_lines_of_old_and_new_files_are_shown(
    tmp_path: Path, echo: Echo, screen: Screen
) -> None:
    append(tmp_path / "controller.log", b"one\n")
    append(tmp_path / "replica_app+A+1.log", b"two\n")
    append(tmp_path / "access-proxy-1.log", b"GET /\n")
    assert echo.fd is not None
    assert select.select([echo.fd], [], [], 5)[0]
    echo.copy()
    assert sorted(screen.seen().splitlines()) == [b"one", b"two"]
    assert echo.due_in_s is None
    echo.copy()
    assert screen.seen() == b""


def test_a_line_is_shown_once_it_is_whole(tmp_path: Path, echo: Echo, screen: Screen) -> None:
    append(tmp_path / "controller.log", b"half ")
    echo.copy()
    assert screen.seen() == b""
    append(tmp_path / "controller.log", b"and whole\nnext")
    echo.copy()
    assert screen.seen() == b"half and whole\n"


def test_a_file_that_is_turned_over_is_shown_to_its_end(
    tmp_path: Path, echo: Echo, screen: Screen
) -> None:
    path = tmp_path / "controller.log"
    append(path, b"last of the old\n")
    path.rename(tmp_path / "controller.log.1")
    append(path, b"first of the new\n")
    echo.copy()
    while echo.due_in_s is not None:
        echo.copy()
    assert screen.seen() == b"last of the old\nfirst of the new\n"


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("tells", [True, False])
def test_a_file_that_was_deleted_is_let_go_of(
    tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    if not tells:
        monkeypatch.setattr(Echo, "_watch", lambda _: None)
    echo = Echo(tmp_path, screen.fd)
    before = open_files()
    for number in range(20):
        path = tmp_path / f"replica_app+A+{number}.log"
        append(path, b"one\n")
        echo.copy()
        append(path, b"last words\n")
        path.unlink()
        echo.copy()
    assert open_files() == before
    assert screen.seen() == b"one\nlast words\n" * 20
    assert echo._behind == set()
    echo.close_in_fork()


def test_who_does_not_look_is_not_waited_for(tmp_path: Path, echo: Echo, screen: Screen) -> None:
    path = tmp_path / "controller.log"
    lines = b"".join(b"%05d %s\n" % (number, b"x" * 100) for number in range(2000))
    append(path, lines)
    echo.copy()
    assert echo._behind
    found = screen.seen()
    while echo.due_in_s is not None:
        echo.copy()
        found += screen.seen()
    assert found == lines


def test_what_nobody_can_read_so_fast_is_left_out_and_said(
    tmp_path: Path, echo: Echo, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BEHIND_BYTES", 5000)
    monkeypatch.setattr(module, "_PART_BYTES", 1000)
    append(tmp_path / "controller.log", b"line\n" * 2000)
    echo.copy()
    found = screen.seen()
    while echo.due_in_s is not None:
        echo.copy()
        found += screen.seen()
    assert found.startswith(b"remora: 9000 bytes are not shown here, see ")
    assert found.count(b"line\n") in (199, 200)


def test_a_file_that_a_link_leads_to_is_shown(tmp_path: Path, screen: Screen) -> None:
    folder, other = tmp_path / "logs", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    echo = Echo(folder, screen.fd)
    append(other / "replica_app+A+1.log", b"one\n")
    (folder / "replica_app+A+1.log").symlink_to(other / "replica_app+A+1.log")
    echo.copy()
    append(other / "replica_app+A+1.log", b"two\n")
    assert echo.due_in_s is not None
    echo.copy()
    assert screen.seen() == b"one\ntwo\n"
    echo.close_in_fork()


def test_the_end_shows_what_nobody_told_of(tmp_path: Path, echo: Echo, screen: Screen) -> None:
    append(tmp_path / "replica_app+A+1.log", b"last words, cut o")
    echo.copy()
    assert screen.seen() == b""
    echo.finish(5.0)
    assert screen.seen() == b"last words, cut o"


def test_without_inotify_files_are_looked_at(
    tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "_watch", lambda _: None)
    echo = Echo(tmp_path, screen.fd)
    assert echo.due_in_s is not None
    append(tmp_path / "controller.log", b"one\n")
    echo.copy()
    assert screen.seen() == b"one\n"
