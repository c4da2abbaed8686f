"""Sweeping a real folder of environments: what is used stays, and nothing is ever half there."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remora.build.pinning import pinned
from remora.core.environments import CacheLimits
from remora.engine.local import removal
from remora.engine.local.build_environment import build
from remora.engine.local.environments import Environments, pieces_of
from remora.engine.local.pieces import complete_file, hold, is_complete, lock, lock_file
from remora.engine.local.removal import ASIDE
from remora.engine.local.sweep_environments import Swept, sweep
from remora.home import Home
from remora.options.resources import RuntimeEnv

#: Nothing stays that is older than a minute and not needed.
NOTHING = CacheLimits(grace_s=60.0, max_idle_s=60.0)
OLD = 1e9


class Folder:
    """Pieces of environments, with contents of a few bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root / "environments"
        self.logs = root / "logs"
        self.logs.mkdir(parents=True)
        self._sources = root / "sources"

    def build(self, content: str, *, old: bool = True) -> Path:
        source = self._sources / content
        source.mkdir(parents=True, exist_ok=True)
        (source / "a.py").write_text(content)
        (piece,) = pieces_of(pinned(RuntimeEnv(working_dir=str(source))))
        place = self.root / piece.name
        build(place, piece.order, self.logs / f"environment-{piece.name}.log")
        if old:
            age(place)
        return place

    def sweep(self, *needed: Path, limits: CacheLimits = NOTHING) -> Swept:
        names = [place.name for place in needed]
        return sweep(self.root, self.logs, names, time.time(), limits)

    def names(self) -> set[str]:
        return {each.name for each in self.root.iterdir()} - {ASIDE}

    def aside(self) -> list[Path]:
        return list((self.root / ASIDE).glob("*"))


def age(place: Path) -> None:
    os.utime(complete_file(place), (OLD, OLD))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_what_is_not_needed_goes_with_all_that_lies_beside_it(folder: Folder) -> None:
    needed, other = folder.build("1"), folder.build("22")
    (folder.logs / f"environment-{other.name}.log").touch()
    os.utime(folder.logs / f"environment-{other.name}.log", (OLD, OLD))
    (folder.root / "of somebody else").mkdir()
    swept = folder.sweep(needed)
    assert [name for name, _ in swept.gone] == [other.name]
    assert (swept.num_bytes, swept.left) == (2, [])
    assert folder.names() == {
        needed.name,
        lock_file(needed).name,
        complete_file(needed).name,
        "of somebody else",
    }
    assert folder.aside() == []
    assert list(folder.logs.iterdir()) == []
    # It was needed now: its time begins anew.
    assert complete_file(needed).stat().st_mtime > OLD
    assert folder.sweep().gone == []


def test_what_was_used_last_is_kept_as_a_cache(folder: Folder) -> None:
    places = [folder.build(str(number)) for number in range(3)]
    for number, place in enumerate(places):
        os.utime(complete_file(place), (OLD + number, OLD + number))
    limits = CacheLimits(grace_s=60.0, max_idle_s=float("inf"), max_pieces=1)
    assert [name for name, _ in folder.sweep(limits=limits).gone] == [p.name for p in places[:2]]


def test_what_a_process_uses_stays_and_is_not_old_after_that(folder: Folder) -> None:
    place = folder.build("1")
    held = hold(place)
    assert held is not None
    age(place)
    assert folder.sweep().gone == []
    os.close(held)
    assert folder.sweep().gone == []
    age(place)
    assert len(folder.sweep().gone) == 1
    assert hold(place) is None


def test_what_is_used_between_the_decision_and_the_end_stays(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder.build("1")
    decide = sys.modules["remora.engine.local.sweep_environments"].superfluous

    def used_meanwhile(*args: Any) -> Any:
        decided = decide(*args)
        held = hold(place)
        assert held is not None
        os.close(held)
        return decided

    monkeypatch.setattr("remora.engine.local.sweep_environments.superfluous", used_meanwhile)
    assert folder.sweep().gone == []
    assert is_complete(place)


def test_a_builder_that_waited_for_the_sweep_builds_under_a_lock_that_all_know(
    folder: Folder,
) -> None:
    place = folder.build("1")
    held = lock(place, fcntl.LOCK_EX)
    code = (
        "import fcntl, sys; from pathlib import Path\n"
        "from remora.engine.local.pieces import lock, lock_file\n"
        "place = Path(sys.argv[1]); print('waits', flush=True)\n"
        "lock(place, fcntl.LOCK_EX); print(lock_file(place).stat().st_ino, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        # As a sweep ends: the lock goes with the piece.
        lock_file(place).unlink()
        os.close(held)
        assert int(waiting.stdout.readline()) == lock_file(place).stat().st_ino
        with pytest.raises(BlockingIOError):
            lock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiting.communicate()


def test_what_a_killed_builder_or_sweep_left_goes_and_what_one_works_on_stays(
    folder: Folder,
) -> None:
    half, emptied, building = folder.build("1"), folder.build("2"), folder.build("3")
    for place in (half, building):
        complete_file(place).unlink()
    shutil.rmtree(emptied)
    (folder.root / ASIDE / "x").mkdir(parents=True)
    held = lock(building, fcntl.LOCK_EX)
    swept = folder.sweep(half, emptied, building)
    assert (swept.gone, swept.left) == ([], [])
    assert folder.names() == {building.name, lock_file(building).name}
    assert folder.aside() == []
    os.close(held)
    # It is built anew although nobody swept.
    assert is_complete(folder.build("3"))


def test_a_folder_without_its_content_is_never_complete(folder: Folder) -> None:
    place = folder.build("1")
    shutil.rmtree(place)
    assert not is_complete(place)
    assert is_complete(folder.build("1"))


@pytest.mark.parametrize("step", ["complete", "moved"])
def test_a_sweep_that_is_killed_leaves_nothing_that_counts(
    step: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    place = folder.build("1")
    with monkeypatch.context() as patch:
        if step == "complete":
            patch.setattr(Path, "rename", killed)
        else:
            patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KilledError):
            folder.sweep()
    assert not is_complete(place)
    assert folder.sweep().left == []
    assert folder.names() == set()
    assert folder.aside() == []
    assert is_complete(folder.build("1"))


def test_a_full_disk_keeps_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder.build("1")
    for name in ("rename", "mkdir"):
        monkeypatch.setattr(Path, name, full)
    swept = folder.sweep()
    assert len(swept.gone) == 1
    assert swept.left == []
    assert folder.names() == set()


def test_what_cannot_be_deleted_is_in_nobodys_way_and_told(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder.build("1")
    unlink = os.unlink

    def refused(path: Any, **kwargs: Any) -> None:
        if os.fspath(path).endswith("a.py"):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refused)
        (left,) = folder.sweep().left
        assert "Operation not permitted" in left
        assert str(folder.root / ASIDE / place.name) in left
        assert is_complete(folder.build("1", old=False))
        assert len(folder.sweep().left) == 1
    assert folder.sweep(place).left == []
    assert folder.aside() == []


def test_folders_that_their_owner_cannot_change_go(folder: Folder, tmp_path: Path) -> None:
    place = folder.build("1")
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (place / "sub").mkdir()
    (place / "sub" / "b.py").touch()
    (place / "sub" / "link").symlink_to(outside)
    (place / "sub").chmod(0o500)
    removal._make_writable(place)
    assert (place / "sub").stat().st_mode & 0o777 == 0o700
    assert outside.stat().st_mode & 0o777 == 0o755
    assert removal.delete(place) == ""
    assert outside.is_dir()


def test_pieces_of_an_older_version_are_measured(folder: Folder) -> None:
    place = folder.build("12345")
    complete_file(place).write_text("")
    age(place)
    assert folder.sweep().num_bytes == 5


def test_a_clock_that_was_ahead_keeps_nothing_for_ever(folder: Folder) -> None:
    place = folder.build("1")
    ahead = time.time() + 1e9
    os.utime(complete_file(place), (ahead, ahead))
    assert folder.sweep().gone == []
    assert complete_file(place).stat().st_mtime <= time.time()


@pytest.mark.slow
async def test_the_engine_sweeps_in_a_process_of_its_own(
    remora_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home.locate(remora_home)
    home.make()
    folder = Folder(remora_home / "x")
    folder.root = remora_home / "environments"
    needed, held, other = (folder.build(each) for each in "123")
    environments = Environments(home)
    sources = remora_home / "x" / "sources"
    await environments.prepare("a#1", pinned(RuntimeEnv(working_dir=str(sources / "2"))), print)
    for place in (needed, held, other):
        age(place)
    with caplog.at_level(logging.INFO, "remora.engine"):
        environments.sweep({pinned(RuntimeEnv(working_dir=str(sources / "1")))})
        assert environments._sweep is not None
        await environments._sweep
    assert {place for place in (needed, held, other) if is_complete(place)} == {needed, held}
    assert f"Removed 1 environment(s) that nothing needs, 0 MiB: {other.name}" in caplog.text
    environments.let_go("a#1")
    age(held)
    environments.sweep(())
    await environments._sweep
    assert not is_complete(held)
    assert is_complete(needed)
    await environments.close()
