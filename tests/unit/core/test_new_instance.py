"""What a controller takes over from the instance before it, and what not."""

from __future__ import annotations

import pytest

from remora.core import events as ev
from remora.core.actions import EndInstance
from remora.core.reconcile import step
from remora.core.state import Application, ControllerState


@pytest.mark.parametrize(("new_instance", "ends"), [(True, False), (False, True)])
def test_a_shutdown_ends_the_instance_that_it_was_asked_of_and_no_later_one(
    new_instance: bool, ends: bool
) -> None:
    saved = ControllerState(shutting_down=True)
    started = ev.ControllerStarted(unix_s=1.7e9, salt="x", new_instance=new_instance)
    after = step(saved, (started,), 10.0)
    assert any(isinstance(action, EndInstance) for action in after.actions) is ends
    assert after.state.shutting_down is ends


@pytest.mark.parametrize("forget", [True, False])
def test_applications_of_an_ended_program_are_not_brought_back(forget: bool) -> None:
    saved = ControllerState()
    saved.applications["left"] = Application(
        name="left", route_prefix="/", ingress="Model", revision=1, last_deployed_unix_s=0.0
    )
    started = ev.ControllerStarted(unix_s=1.7e9, salt="x", new_instance=True, forget=forget)
    after = step(saved, (started,), 10.0)
    assert ("left" in after.state.applications) is not forget
