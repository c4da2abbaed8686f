"""Who can reach what is in a state folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from remora.home import Home


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_what_is_made_is_for_this_user_alone(tmp_path: Path) -> None:
    home = Home.locate(tmp_path / "deep" / "home")
    home.make()
    assert {mode_of(path) for path in (home.root, home.sockets, home.logs)} == {0o700}


def test_a_folder_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    """The state holds pickles: who can write them runs code as this user."""
    home = Home.locate(tmp_path / "home")
    for path in (home.root, home.sockets, home.logs):
        path.mkdir()
        path.chmod(0o777)
    home.make()
    assert {mode_of(path) for path in (home.root, home.sockets, home.logs)} == {0o700}


def test_a_folder_that_is_meant_for_everybody_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match="everybody shares"):
        Home.locate(tmp_path).make()
    assert mode_of(tmp_path) == 0o1777


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=f"belongs to user {owner}, not to {owner + 1}"):
        Home.locate(tmp_path).make()


def test_a_link_of_this_user_to_another_disk_is_followed(tmp_path: Path, remora_home: Path) -> None:
    # Not below `tmp_path`, which may be too long a path for sockets: they would lie elsewhere.
    link = remora_home / "home"
    link.symlink_to(tmp_path)
    Home.locate(link).make()
    assert (tmp_path / "run").is_dir()


def test_whoever_has_another_folder_for_temporary_files_finds_the_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / ("long" * 20))
    monkeypatch.setattr(tempfile, "tempdir", None)
    found = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.setenv("TMPDIR", str(folder))
        found.add(home.sockets)
    assert len(found) == 1
    assert len(bytes(found.pop())) < 40
