"""How a script learns which node it is on."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from remora.errors import InstanceError
from remora.home import Home
from remora.transport.membership import Membership, join, join_by_folder, mine


@pytest.fixture
def home(remora_home: Path) -> Iterator[Home]:
    found = Home(remora_home)
    found.make()
    yield found
    join(Membership())


def test_it_is_taken_from_the_folder_and_kept_from_others(home: Home) -> None:
    Membership("n1", "secret").write(home)
    assert stat.S_IMODE(home.membership_file.stat().st_mode) == 0o600
    join_by_folder(home)
    assert mine() == Membership("n1", "secret")


def test_a_folder_of_one_node_says_nothing(home: Home) -> None:
    join(Membership("n2", "theirs"))
    join_by_folder(home)
    assert mine() == Membership("n2", "theirs")


def test_a_broken_file_says_which(home: Home) -> None:
    home.membership_file.write_text("{}")
    with pytest.raises(InstanceError, match=r"membership\.json"):
        join_by_folder(home)
