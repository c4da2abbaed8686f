"""What stuck replicas saved is found, and what healthy ones keep open is not in the way."""

from __future__ import annotations

from pathlib import Path

from remora.control.stacks import SavedStacks
from remora.home import Home
from remora.types import ReplicaID

REPLICA = ReplicaID("a/D#1")


def test_a_file_is_shown_when_something_is_in_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.logs.mkdir()
    saved = SavedStacks(home)
    with home.stacks_file(REPLICA).open("a") as file:
        assert saved.of(REPLICA) == ""
        assert list(home.logs.glob("stuck-*")) == []
        file.write("first\n")
        file.flush()
        assert saved.of(REPLICA) == str(home.logs / "stuck-a-D-1.txt")
        file.write("second\n")
    saved.tidy(REPLICA)
    assert [each.name for each in home.logs.iterdir()] == ["stuck-a-D-1.txt"]
    assert Path(saved.of(REPLICA)).read_text() == "first\nsecond\n"


def test_nothing_stays_of_a_replica_that_was_well(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.logs.mkdir()
    home.stacks_file(REPLICA).touch()
    SavedStacks(home).tidy(REPLICA)
    assert list(home.logs.iterdir()) == []
