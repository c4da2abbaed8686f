"""What is prepared before an instance's first process starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remora.engine import launch
from remora.engine.claim import Claim
from remora.home import Home


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(launch, "_FULL_LOG_BYTES", 10)
    home = Home.locate(tmp_path)
    home.make()
    return home.logs / launch.LOG_NAME


def test_a_full_log_is_put_aside_and_one_old_one_kept(log: Path, tmp_path: Path) -> None:
    for text in ("first, full", "second, full", "short"):
        launch._to_log(Home.locate(tmp_path))
        log.write_text(text)
    launch._to_log(Home.locate(tmp_path))
    assert log.read_text() == "short"
    assert sorted(each.name for each in log.parent.iterdir()) == ["instance.log", "instance.log.1"]
    assert (log.parent / "instance.log.1").read_text() == "second, full"


def test_the_log_of_an_instance_that_runs_stays(log: Path, tmp_path: Path) -> None:
    claim = Claim.take(Home.locate(tmp_path))
    claim.write_owner(launch.Owner(os.getpid(), "token"))
    log.write_text("full of what it printed")
    launch._to_log(Home.locate(tmp_path))
    assert log.read_text() == "full of what it printed"
    claim.close()
