"""Log files: their names, how they are turned over, and which ones are deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.observe import log_files as module
from remora.observe.log_files import (
    LogFile,
    doomed,
    is_in_use,
    is_log_of,
    old_path,
    replica_log_name,
    replica_of,
    sweep,
)
from remora.types import DeploymentID, replica_id

NAMES = st.text(min_size=1, max_size=40).filter(lambda text: "#" not in text)
SHORT = st.text("ab_+/% é", min_size=1, max_size=8)


@given(NAMES, NAMES.filter(lambda text: "/" not in text))
def test_every_replica_has_a_file_of_its_own(app: str, deployment: str) -> None:
    name = replica_log_name(replica_id(DeploymentID(deployment, app), "c0-1"))
    assert len(os.fsencode(name)) <= 240
    assert "/" not in name
    assert is_log_of(name, app, deployment)
    assert is_log_of(name, app)
    assert not is_log_of(name, app + "x")
    assert not is_log_of(name, app, deployment + "x")


@given(SHORT, SHORT.filter(lambda text: "/" not in text))
def test_a_name_tells_whose_the_file_is(app: str, deployment: str) -> None:
    name = replica_log_name(replica_id(DeploymentID(deployment, app), "c0-1"))
    assert replica_of(name) == (app, deployment, "c0-1")


def test_long_names_stay_apart() -> None:
    first, second = (
        replica_log_name(replica_id(DeploymentID("é" * 300 + end, "app"), "1")) for end in "ab"
    )
    assert first != second
    assert len(first) < 240


def test_a_full_file_is_put_aside_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = LogFile(path, max_bytes=10, max_old=2)
    for number in range(5):
        file.write(b"%d" % number * 10)
        file.tend()
    file.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert old_path(path, 1).read_bytes() == b"4" * 10
    assert old_path(path, 2).read_bytes() == b"3" * 10
    assert path.read_bytes() == b""


def test_without_old_files_a_full_one_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = LogFile(path, max_bytes=10, max_old=0)
    file.write(b"x" * 10)
    file.tend()
    file.write(b"y")
    file.close()
    assert [each.name for each in tmp_path.iterdir()] == ["a.log"]
    assert path.read_bytes() == b"y"


def test_a_file_that_somebody_has_deleted_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.log"
    file = LogFile(path, max_bytes=1000, max_old=1)
    path.unlink()
    path.parent.rmdir()
    assert file.is_due
    file.tend()
    file.write(b"here")
    file.close()
    assert path.read_bytes() == b"here"


def test_descriptors_lead_to_the_file_also_after_it_was_turned_over(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    code = f"""
import os
from pathlib import Path
from remora.observe.log_files import LogFile
file = LogFile(Path({str(path)!r}), max_bytes=10, max_old=1, redirected=(1, 2))
os.write(2, b"native, and long\\n")
file.tend()
os.write(1, b"more\\n")
os.system("echo child")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b""
    assert old_path(path, 1).read_text() == "native, and long\n"
    assert path.read_text() == "more\nchild\n"


def test_the_oldest_files_of_a_deployment_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_OF_DEPLOYMENT", 2)
    entries = [(float(n), f"replica_app+A+{n}.log") for n in range(5)]
    entries += [(0.0, "replica_app+B+0.log"), (9.0, "controller.log"), (0.0, "access-proxy-1.log")]
    assert doomed(entries, "replica_app+A+4.log") == ["replica_app+A+0.log", "replica_app+A+1.log"]
    monkeypatch.setattr(module, "KEPT_OF_ALL", 4)
    assert "replica_app+B+0.log" in doomed(entries, "replica_app+A+4.log")


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 300)), max_size=60))
def test_the_own_file_and_other_things_always_stay(found: set[tuple[int, int]]) -> None:
    entries = [(float(n), f"replica_app+D{d}+{n}.log") for d, n in found]
    own = "replica_app+D0+0.log"
    gone = doomed([*entries, (0.0, own), (0.0, "instance.log")], own)
    assert own not in gone
    assert "instance.log" not in gone
    assert len(set(gone)) == len(gone)


def test_files_that_are_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_OF_DEPLOYMENT", 0)
    used = LogFile(tmp_path / "replica_app+A+1.log", max_bytes=100, max_old=1)
    for name in ("replica_app+A+0.log", "replica_app+A+0.log.1", "replica_app+A+2.log"):
        (tmp_path / name).touch()
    assert is_in_use(used.path)
    sweep(tmp_path, tmp_path / "replica_app+A+2.log")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "replica_app+A+1.log",
        "replica_app+A+2.log",
    ]
    used.close()
    assert not is_in_use(used.path)


def test_a_file_elsewhere_goes_with_the_link_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_OF_DEPLOYMENT", 0)
    folder, other = tmp_path / "logs", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    for name in ("replica_app+A+0.log", "replica_app+A+0.log.1"):
        (other / name).touch()
    (folder / "replica_app+A+0.log").symlink_to(other / "replica_app+A+0.log")
    (folder / "replica_app+A+1.log").touch()
    sweep(folder, folder / "replica_app+A+1.log")
    assert list(other.iterdir()) == []
    assert [each.name for each in folder.iterdir()] == ["replica_app+A+1.log"]
