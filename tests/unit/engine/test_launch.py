"""What is prepared before an instance's first process starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remora.config import AdminOptions, HTTPOptions
from remora.engine import launch
from remora.engine.claim import Claim
from remora.home import Home
from remora.options.logging import LoggingConfig
from remora.options.tracing import TracingConfig
from remora.wire.grpc import GrpcSetup, digest


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


def test_options_may_be_numbers_of_numpys() -> None:
    # Types know nothing of it.
    number: Any = np.int64
    part: Any = np.float32(0.5)
    setup = launch.LaunchSetup(
        http=HTTPOptions(port=number(8001), request_timeout_s=part),
        admin=AdminOptions(port=number(8266)),
        logging=LoggingConfig(max_old_files=number(3)),
        tracing=TracingConfig(sampling_ratio=part),
        grpc=GrpcSetup(host="", port=number(9000), request_timeout_s=part),
    )
    assert digest(setup.grpc)
    told = json.loads(json.dumps(launch._told(setup)))
    assert (told["http"]["port"], told["http"]["request_timeout_s"]) == (8001, 0.5)
    assert told["admin"]["port"] == 8266
    assert told["logging"]["max_old_files"] == 3
    assert told["tracing"]["sampling_ratio"] == 0.5


def test_the_log_of_an_instance_that_runs_stays(log: Path, tmp_path: Path) -> None:
    claim = Claim.take(Home.locate(tmp_path))
    claim.write_owner(launch.Owner(os.getpid(), "token"))
    log.write_text("full of what it printed")
    launch._to_log(Home.locate(tmp_path))
    assert log.read_text() == "full of what it printed"
    claim.close()
