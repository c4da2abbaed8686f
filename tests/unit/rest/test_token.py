"""The token of the REST API: whole, or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from remora.engine.admin_token import token_file, token_of
from remora.engine.base import ProcessContext
from remora.errors import InstanceError
from remora.home import Home
from remora.rest.guard import Rules
from remora.rest.main import rules_of


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_it_is_made_once_and_only_this_user_reads_it(home: Home) -> None:
    made = token_of(home)
    assert len(made) >= 32
    assert token_of(home) == made
    assert stat.S_IMODE(token_file(home).stat().st_mode) == 0o600
    assert [each.name for each in home.root.iterdir()] == [token_file(home).name]


def test_one_that_a_user_wrote_counts(home: Home) -> None:
    token_file(home).write_text("mine\n")
    assert token_of(home) == "mine"


def test_an_empty_file_is_an_error_and_no_open_door(home: Home) -> None:
    token_file(home).write_text("\n")
    with pytest.raises(InstanceError, match="is empty: write a token into it, or remove it"):
        token_of(home)


def test_a_full_disk_leaves_no_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            token_of(home)
    assert [each.name for each in home.root.iterdir()] == []
    assert token_of(home)


def test_of_two_that_make_it_at_once_the_first_counts(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(made: str, place: Path) -> None:
        token_file(home).write_text("theirs\n")
        link(made, place)

    monkeypatch.setattr(os, "link", late)
    assert token_of(home) == "theirs"


def test_in_a_cluster_it_is_that_of_the_folder_where_the_instance_was_started(home: Home) -> None:
    def rules(**args: str) -> Rules:
        return rules_of(ProcessContext("admin", home, args, {}, ""))

    token_file(home).write_text("of this node\n")
    assert rules(host="0.0.0.0", token="of the instance").token == "of the instance"
    assert rules(host="0.0.0.0").token == "of this node"
    # Nobody else reaches it.
    assert rules(host="127.0.0.1", token="of the instance").token == ""
