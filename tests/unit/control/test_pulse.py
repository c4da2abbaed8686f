"""What the controller notes of its own ticks."""

from __future__ import annotations

import math

import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.control.callees import MAX_CALLEES, MAX_CALLERS, CalleeRegistry
from remora.control.pulse import KEPT, Pulse, spread
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.control import Callees
from remora.wire.health import ControllerHealth

pytestmark = pytest.mark.virtual_time


def test_values_are_summed_up() -> None:
    assert spread([]) is None
    found = spread([1.0, 3.0])
    assert found is not None
    assert (found.mean, found.std, found.min, found.max) == (2.0, 1.0, 1.0, 3.0)


def test_nothing_is_known_before_the_first_tick() -> None:
    health = Pulse().health(5.0, 100.0, 90.0)
    assert (health.num_control_loops, health.loop_duration_s, health.uptime_s) == (0, None, 10.0)
    assert (health.last_control_loop_time, health.loops_per_second) == (0.0, 0.0)


def test_how_late_a_tick_comes_is_measured_from_what_it_is_for() -> None:
    pulse = Pulse()
    pulse.pauses(1.0, 5.0)
    pulse.woken(2.0)
    # What comes after the first is answered by the same tick.
    pulse.woken(2.5)
    pulse.begins(3.0)
    pulse.ends(3.5, 0.25, 0.125)
    health = pulse.health(4.0, 104.0, 100.0)
    assert (health.last_sleep_duration_s, health.expected_sleep_duration_s) == (2.0, 5.0)
    assert health.event_loop_delay_s == 1.0
    assert health.last_control_loop_time == 103.0
    # By time alone: late is what comes after that time.
    pulse.pauses(4.0, 5.0)
    pulse.begins(9.25)
    pulse.ends(9.25, 0.0, 0.0)
    health = pulse.health(13.0, 113.0, 100.0)
    assert (health.event_loop_delay_s, health.max_event_loop_delay_s) == (0.25, 1.0)
    assert health.loops_per_second == pytest.approx(0.2)


def test_only_the_latest_ticks_are_kept() -> None:
    pulse = Pulse()
    for number in range(3 * KEPT):
        pulse.begins(float(number))
        pulse.ends(number + (1.0 if number == 0 else 0.5), 0.0, 0.0)
    health = pulse.health(300.0, 300.0, 0.0)
    assert health.num_control_loops == 3 * KEPT
    assert health.loop_duration_s is not None
    assert math.isclose(health.loop_duration_s.max, 0.5)
    assert health.loops_per_second == pytest.approx(1.0)


async def test_the_controller_tells_how_it_is_and_who_has_ended(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    body = await r.admin.handlers["health"](b"")  # type: ignore[misc]
    health = unpack(body, ControllerHealth)
    assert health.num_control_loops > 1
    assert health.loop_duration_s is not None
    await r.deploy(app("default", deployment(num_replicas=1)))
    status = await r.until(lambda _: len(r.controller.state.stopped) == 1)
    assert status is not None
    found = status.deployments["Model"]
    (dead,) = found.recent_dead_replicas
    assert dead.replica_id not in {each.replica_id for each in found.replicas}
    assert dead.reason.startswith("told to leave")
    assert status.ingress == "Model"


async def test_what_replicas_call_is_added_to_what_was_bound(r: Rig) -> None:
    await r.deploy(app("default", deployment()))
    await r.until_running()
    other = DeploymentID("Other", "elsewhere")
    for caller in ("default/Model#1", "gone/Model#2"):
        said = Callees(caller, (other, DeploymentID("Model", "default")))
        await r.call("callees", pack(said))
    status = await r.status()
    assert status is not None
    assert status.deployments["Model"].calls == (other, DeploymentID("Model", "default"))


def test_what_is_said_of_callees_is_bounded() -> None:
    registry = CalleeRegistry()
    many = tuple(DeploymentID(str(number)) for number in range(2 * MAX_CALLEES))
    registry.note(Callees("a/D#1", many))
    assert len(registry._called["a/D"]) == MAX_CALLEES
    for number in range(MAX_CALLERS + 10):
        registry.note(Callees(f"a/D{number}#1", many[:1]))
    assert len(registry._called) == MAX_CALLERS
    # Of what is gone nothing is kept.
    assert registry.added({}) == {}
    assert not registry._called
