"""What a controller takes over from the instance before it, and what not."""

from __future__ import annotations

import pytest

from remora.core import events as ev
from remora.core.actions import EndInstance
from remora.core.reconcile import step
from remora.core.state import ControllerState


@pytest.mark.parametrize(("new_instance", "ends"), [(True, False), (False, True)])
def test_a_shutdown_ends_the_instance_that_it_was_asked_of_and_no_later_one(
    new_instance: bool, ends: bool
) -> None:
    saved = ControllerState(shutting_down=True)
    started = ev.ControllerStarted(unix_s=1.7e9, salt="x", new_instance=new_instance)
    after = step(saved, (started,), 10.0)
    assert any(isinstance(action, EndInstance) for action in after.actions) is ends
    assert after.state.shutting_down is ends
