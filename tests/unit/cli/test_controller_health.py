"""`remora controller-health` prints what the controller says, for people and for programs."""

from __future__ import annotations

import json

import pytest
import yaml

from remora.cli import controller_health
from remora.cli.controller_health import show_controller_health
from remora.control.pulse import Pulse
from remora.wire.health import ControllerHealth


class Found:
    async def controller_health(self) -> ControllerHealth:
        pulse = Pulse()
        pulse.begins(10.0)
        pulse.ends(10.5, 0.25, 0.125)
        return pulse.health(20.0, 120.0, 100.0)


@pytest.mark.parametrize("as_json", [True, False])
def test_all_that_is_known_is_printed(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(controller_health, "find", Found)
    show_controller_health(as_json=as_json)
    printed = capsys.readouterr().out
    said = json.loads(printed) if as_json else yaml.safe_load(printed)
    assert said["num_control_loops"] == 1
    assert said["loop_duration_s"]["mean"] == 0.5
    assert list(said) == list(ControllerHealth.__struct_fields__)
