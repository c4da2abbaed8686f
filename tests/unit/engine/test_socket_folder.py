"""Folders of sockets outside of their state folders: gone at the end, and swept when nobody can use them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from remora import home as homes
from remora.engine import socket_folder
from remora.engine.claim import Claim
from remora.engine.socket_folder import Folder, may_be_left, sweep
from remora.home import Home

OLD = 1_000.0
LEFT = Folder(
    "remora-7-0123456789ab", True, 7, OLD, ("controller.sock", "r1.sock", "proxies"), False
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """With a path so long that the sockets lie elsewhere."""
    short = Path(tempfile.mkdtemp(prefix="remora-t-"))
    monkeypatch.setattr(homes, "SHORT_FOLDER", short)
    found = Home(tmp_path / ("long" * 20))
    assert found.sockets.parent == short
    return found


def age(path: Path) -> None:
    os.utime(path, (OLD, OLD))


@pytest.mark.parametrize(
    "other",
    [
        replace(LEFT, name="remora-8-0123456789ab"),
        replace(LEFT, name="remora-7-mine"),
        replace(LEFT, is_folder=False),
        replace(LEFT, uid=0),
        replace(LEFT, has_listener=True),
        replace(LEFT, changed_at_unix_s=OLD + 1),
        replace(LEFT, content=("controller.sock", "notes.txt")),
    ],
)
def test_only_what_an_instance_of_this_user_left_a_while_ago_may_go(other: Folder) -> None:
    now = OLD + 60.5
    assert may_be_left(LEFT, 7, now)
    assert not may_be_left(other, 7, now)


def test_an_instance_that_ends_leaves_no_folder_and_the_next_has_one_again(home: Home) -> None:
    for _ in range(2):
        claim = Claim.take(home)
        (home.sockets / "controller.sock").touch()
        claim.leave()
        assert not home.sockets.exists()
        assert home.logs.is_dir()


def test_the_folder_of_an_instance_that_was_killed_is_swept_and_no_other(home: Home) -> None:
    claim = Claim.take(home)
    (home.sockets / "controller.sock").touch()
    strange = home.sockets.with_name(home.sockets.name[:-1] + "x")
    strange.mkdir()
    for path in (home.sockets, strange):
        age(path)
    # It runs.
    assert sweep() == 0
    claim.close()
    # A process of an older version listens there, which knows of no lock.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.sockets / "r1.sock"))
        age(home.sockets)
        assert sweep() == 0
    assert sweep() == 1
    assert not home.sockets.exists()
    assert strange.exists()


def test_what_was_begun_when_a_process_was_killed_keeps_no_folder(home: Home) -> None:
    for is_over in (False, True):
        claim = Claim.take(home)
        (home.sockets / "p12.new").touch()
        if is_over:
            claim.leave()
        else:
            claim.close()
            age(home.sockets)
            assert sweep() == 1
        assert not home.sockets.exists()


def test_each_folder_has_its_turn_where_there_are_more_than_are_looked_at_at_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_folder, "_MOST_AT_ONCE", 2)
    for number in range(12):
        folder = home.sockets.parent / f"remora-{os.getuid()}-{number:012x}"
        folder.mkdir(parents=True)
        # Most stay, whatever else there is.
        if number % 4:
            (folder / "notes.txt").touch()
        age(folder)
    rng = random.Random(7)
    assert sum(sweep(rng) for _ in range(100)) == 3


def test_a_folder_is_free_when_its_holder_was_killed(home: Home) -> None:
    code = (
        "import pathlib, sys\n"
        "from remora import home\n"
        "home.SHORT_FOLDER = pathlib.Path(sys.argv[2])\n"
        "from remora.engine.claim import Claim\n"
        "from remora.home import Home\n"
        "claim = Claim.take(Home.locate(sys.argv[1]))\n"
        "print('taken', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(home.root), str(home.sockets.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        age(home.sockets)
        assert sweep() == 0
        holder.kill()
    assert sweep() == 1


def test_who_starts_while_others_sweep_has_a_folder(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_folder, "_YOUNG_S", -1.0)
    is_over = threading.Event()

    def keep_sweeping() -> None:
        while not is_over.is_set():
            sweep()

    thread = threading.Thread(target=keep_sweeping)
    thread.start()
    try:
        for number in range(50):
            claim = Claim.take(home)
            claim.clean()
            path = home.sockets / "controller.sock"
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                assert path.exists(), number
            claim.close()
    finally:
        is_over.set()
        thread.join()
