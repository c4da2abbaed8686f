"""Scaling by demand with the real controller, on virtual time, over fake replicas."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.control.rig import Rig, app, deployment, rig

from remora.config import AutoscalingConfig
from remora.control import autoscaler
from remora.core import events as ev
from remora.errors import ConfigError, ExternalScalerDisabledError, UnknownTargetError
from remora.options.resources import GangSchedulingConfig
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.control import ApplicationSpec, Subscription
from remora.wire.scaling import (
    CapacityRequest,
    DemandReport,
    ScaleRequest,
    ScalingDetail,
    ScalingDetails,
    ScalingRequest,
)

pytestmark = pytest.mark.virtual_time

MODEL = DeploymentID("Model")


def scaled(**options: Any) -> ApplicationSpec:
    """An application whose one deployment is scaled by demand."""
    config = AutoscalingConfig(**{"max_replicas": 10, **options})
    return app("default", deployment(autoscaling_config=config))


class Load:
    """Spreads so many ongoing requests over whatever replicas there are, for ever."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._total = 0.0
        self.queued_only = False
        rig.on_snapshot.append(lambda _snapshot: self.spread())

    def set(self, total: float) -> None:
        """So many from now on."""
        self._total = total
        self.spread()

    def spread(self) -> None:
        """Each replica works on its share; without any, all wait in a router."""
        serving = self._rig.replicas.serving
        routable = self._rig.num_routable()
        for replica in serving:
            replica.work_on(self._total / len(serving))
        waiting = 0.0 if routable else self._total
        self._rig.controller.autoscaler.report(DemandReport("router", {MODEL: waiting}))


def now() -> float:
    return asyncio.get_running_loop().time()


async def detail_of(r: Rig, *, past: bool = False) -> ScalingDetail:
    made = r.admin.handlers["scaling"](pack(ScalingRequest("default", "Model", past)))
    assert not hasattr(made, "__aiter__")
    return unpack(await made, ScalingDetails).deployments[0]


async def target_of(r: Rig) -> int:
    status = await r.status()
    assert status is not None
    return status.deployments["Model"].target_num_replicas


async def until_target(r: Rig, wanted: int, limit_s: float = 3600.0) -> float:
    """Wait until so many replicas are wanted; say how long it took."""
    began = now()
    await r.until(
        lambda s: s is not None and s.deployments["Model"].target_num_replicas == wanted,
        timeout_s=limit_s,
    )
    return now() - began


async def test_begins_with_the_initial_number(r: Rig) -> None:
    await r.deploy(scaled(min_replicas=1, initial_replicas=4))
    await r.until_settled()
    assert r.num_routable() == 4


@pytest.mark.parametrize("delay_s", [0.0, 3.0, 30.0])
async def test_a_burst_has_its_first_new_replica_within_a_second_of_the_delay(
    r: Rig, delay_s: float
) -> None:
    load = Load(r)
    await r.deploy(scaled(upscale_delay_s=delay_s))
    await r.until_settled()
    # A long quiet, so that a mean over the window sees a burst late.
    await asyncio.sleep(300.0)
    load.set(20.0)
    took = await until_target(r, 10)
    assert delay_s <= took <= delay_s + 1.0
    await r.until_settled()
    assert r.num_routable() == 10


async def test_scales_down_after_the_delay_and_not_before(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(upscale_delay_s=0, downscale_delay_s=60, look_back_period_s=10))
    await r.until_settled()
    load.set(20.0)
    await until_target(r, 10)
    await r.until_settled()
    await asyncio.sleep(100.0)
    load.set(2.0)
    took = await until_target(r, 1)
    # From the moment when the mean over ten seconds is less than 18, on.
    assert 60.0 <= took <= 60.0 + 10.0 + 2.0


async def test_a_blip_scales_nothing(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(upscale_delay_s=10))
    await r.until_settled()
    load.set(20.0)
    await asyncio.sleep(0.5)
    load.set(0.0)
    await asyncio.sleep(120.0)
    assert await target_of(r) == 1
    assert (await detail_of(r)).decisions == ()


async def test_to_zero_and_back_with_the_requests_that_wait(r: Rig) -> None:
    load = Load(r)
    options: dict[str, Any] = {"downscale_delay_s": 5, "downscale_to_zero_delay_s": 20}
    await r.deploy(scaled(min_replicas=0, initial_replicas=2, **options))
    await r.until_settled()
    took_one = await until_target(r, 1)
    took_zero = await until_target(r, 0)
    assert (round(took_one), round(took_zero)) == (5, 20)
    await r.until_settled()
    assert r.num_routable() == 0
    before = now()
    load.set(3.0)
    await until_target(r, 1)
    # Nobody waits for a delay where nothing runs.
    assert now() - before < 0.1
    await r.until_settled()
    assert r.num_routable() == 1


async def test_a_silent_replica_keeps_the_others(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(initial_replicas=5, downscale_delay_s=60))
    await r.until_settled()
    load.set(10.0)
    for replica in r.replicas.serving:
        replica.is_silent = True
    await asyncio.sleep(300.0)
    load.set(0.0)
    await asyncio.sleep(600.0)
    assert await target_of(r) == 5
    detail = await detail_of(r)
    assert detail.metrics_health == "delayed"
    assert detail.latest is not None
    for replica in r.replicas.serving:
        replica.is_silent = False
        replica.work_on(0.0)
    assert await until_target(r, 1) <= 60.0 + 30.0 + 5.0


async def test_replicas_report_at_a_new_interval_once_it_is_deployed(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(initial_replicas=4, metrics_interval_s=1000))
    await r.until_settled()
    load.set(4.0)
    await asyncio.sleep(10.0)
    pids = {replica.pid for replica in r.replicas.serving}
    await r.deploy(scaled(metrics_interval_s=5, downscale_delay_s=60))
    await r.until_settled()
    assert {replica.pid for replica in r.replicas.serving} == pids
    # Nobody is taken for silent who was told to report less often before.
    await asyncio.sleep(100.0)
    assert (await detail_of(r)).metrics_health == "healthy"
    load.set(0.0)
    assert await until_target(r, 1) <= 60.0 + 30.0 + 5.0


async def test_an_idle_deployment_costs_the_controller_nothing(r: Rig) -> None:
    await r.deploy(scaled(min_replicas=3, max_replicas=3, metrics_interval_s=1000))
    await r.until_settled()
    await asyncio.sleep(200.0)
    looks = []
    scaled_one = r.controller.autoscaler._scaled[MODEL]
    decide = scaled_one.decide
    scaled_one.decide = lambda *a: (looks.append(now()), decide(*a))[1]  # type: ignore[func-returns-value, method-assign]
    await asyncio.sleep(500.0)
    assert looks == []


async def test_many_replicas_report_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if two thousand reports a second were too many by far.
    monkeypatch.setattr(autoscaler, "MAX_REPORTS_PER_S", 2)

    async with rig() as r:
        load = Load(r)
        await r.deploy(scaled(initial_replicas=1, upscale_delay_s=0))
        await r.until_settled()
        assert set(paces(r)) == {0.5}
        load.set(20.0)
        await until_target(r, 10)
        await r.until_settled()
        assert set(paces(r)) == {5.0}
        # All of them are heard at that pace, too.
        load.set(4.0)
        await asyncio.sleep(1.0)
        assert (await detail_of(r)).metrics["total"] == pytest.approx(4.0)


def paces(r: Rig) -> list[float]:
    return [watch._wanted.report_s for watch in r.controller.autoscaler._watches.values()]


async def nothing(_wanted: object) -> list[ev.AnyEvent]:
    return []


async def test_the_decision_log_says_every_step(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load(r)
    await r.deploy(scaled(max_replicas=4, upscale_delay_s=5))
    await r.until_settled()
    await asyncio.sleep(60.0)
    load.set(20.0)
    await asyncio.sleep(2.0)
    waiting = (await detail_of(r)).latest
    assert waiting is not None
    assert (waiting.before, waiting.after, waiting.asked) == (1, 1, 10)
    assert [limit.name for limit in waiting.limits] == ["bounds", "upscale_delay"]
    assert "for 2.0 s so far: in 3.0 s" in waiting.reason
    await until_target(r, 4)
    detail = await detail_of(r)
    (only,) = detail.decisions
    assert (only.before, only.after) == (1, 4)
    assert only.formula == "ceil(20 requests / 2 for each replica) = 10"
    assert detail.status == "UPSCALING"
    logged = [
        event
        for entry in await r.controller.log.read()
        for event in entry.events
        if isinstance(event, ev.ScaleDecided)
    ]
    assert [event.record for event in logged] == [only]
    # What the log has lost is told from memory, and nothing twice.
    assert (await detail_of(r, past=True)).decisions == (only,)
    monkeypatch.setattr(r.controller.log, "find", nothing)
    assert (await detail_of(r, past=True)).decisions == (only,)


async def test_a_deploy_keeps_the_number_and_a_restart_too(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(upscale_delay_s=0))
    await r.until_settled()
    load.set(12.0)
    await until_target(r, 6)
    await r.until_settled()
    await r.deploy(scaled(upscale_delay_s=0))
    assert await target_of(r) == 6
    await r.deploy(scaled(upscale_delay_s=0, max_replicas=5))
    assert await target_of(r) == 5
    await r.until_settled()
    pids = {replica.pid for replica in r.replicas.serving}
    await r.stop()
    await r.start()
    await r.until_settled()
    assert await target_of(r) == 5
    assert {replica.pid for replica in r.replicas.serving} == pids
    # Whoever says how many there are at first says it anew.
    await r.deploy(scaled(initial_replicas=2))
    assert await target_of(r) == 2


async def test_what_serves_after_a_failed_deploy_is_scaled_by_its_own_limits(r: Rig) -> None:
    load = Load(r)
    r.replicas.fail_construct = lambda spec: "boom" if spec.code_version == "bad" else ""
    await r.deploy(scaled(upscale_delay_s=0.0))
    await r.until_settled()
    narrow = AutoscalingConfig(max_replicas=2)
    await r.deploy(app("default", deployment(version="bad", autoscaling_config=narrow)))
    await r.until(lambda s: s is not None and s.status == "DEPLOY_FAILED")
    load.set(20.0)
    await r.until(lambda _: r.num_routable() == 10)
    assert (await detail_of(r)).target_num_replicas == 10


async def test_past_decisions_are_told_by_the_next_controller_too(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(upscale_delay_s=0))
    await r.until_settled()
    load.set(12.0)
    await until_target(r, 6)
    await r.until_settled()
    (before,) = (await detail_of(r)).decisions
    # The log is written every few seconds.
    await asyncio.sleep(15.0)
    await r.stop()
    await r.start()
    await r.until_settled()
    assert (await detail_of(r)).decisions == ()
    assert (await detail_of(r, past=True)).decisions == (before,)


async def test_gangs_come_and_go_as_a_whole(r: Rig) -> None:
    load = Load(r)
    config = AutoscalingConfig(max_replicas=9, upscale_delay_s=0, downscale_delay_s=5)
    gang = GangSchedulingConfig(gang_size=2)
    await r.deploy(
        app("default", deployment(autoscaling_config=config, gang_scheduling_config=gang))
    )
    await r.until_settled()
    assert r.num_routable() == 2
    load.set(9.0)
    # Five would be enough.
    await until_target(r, 6)
    load.set(100.0)
    await until_target(r, 8)
    load.set(5.0)
    await until_target(r, 4)
    await r.until_settled()
    assert r.num_routable() == 4


async def test_status_says_that_demand_did_it(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(upscale_delay_s=0))
    await r.until_settled()
    r.replicas.construct_s = 5.0
    load.set(4.0)
    await until_target(r, 2)
    status = await r.status()
    assert status is not None
    only = status.deployments["Model"]
    assert (only.status, only.status_trigger) == ("UPSCALING", "AUTOSCALING")
    await r.until_settled()
    status = await r.status()
    assert status is not None
    only = status.deployments["Model"]
    assert (only.status, only.status_trigger) == ("HEALTHY", "UPSCALE_COMPLETED")


async def test_panic_scales_without_delay(r: Rig) -> None:
    load = Load(r)
    await r.deploy(scaled(upscale_delay_s=600, panic_window_s=3))
    await r.until_settled()
    load.set(2.0)
    await asyncio.sleep(60.0)
    load.set(16.0)
    assert await until_target(r, 8) <= 3.0 + 0.5


# ---------------------------------------------------------------------------------- from outside


def outside(**options: Any) -> ApplicationSpec:
    import msgspec

    return msgspec.structs.replace(app("default", deployment(**options)), external_scaler=True)


async def test_a_number_from_outside_survives_deploys_that_do_not_set_one(r: Rig) -> None:
    await r.deploy(outside(num_replicas=2))
    await r.until_settled()
    await r.call("scale", pack(ScaleRequest("default", "Model", 5)))
    await r.until_settled()
    assert r.num_routable() == 5
    assert (await detail_of(r)).by == "outside"
    await r.deploy(outside(num_replicas=2, max_ongoing_requests=9))
    await r.until_settled()
    assert r.num_routable() == 5
    await r.call("scale", pack(ScaleRequest("default", "Model", 0)))
    await r.until_settled()
    assert r.num_routable() == 0
    await r.deploy(outside(num_replicas=3))
    await r.until_settled()
    assert r.num_routable() == 3


async def test_refuses_a_number_from_outside_where_none_is_expected(r: Rig) -> None:
    await r.deploy(app())
    await r.until_settled()
    with pytest.raises(ExternalScalerDisabledError, match="external_scaler_enabled"):
        await r.call("scale", pack(ScaleRequest("default", "Model", 5)))
    with pytest.raises(UnknownTargetError, match="Applications: default"):
        await r.call("scale", pack(ScaleRequest("other", "Model", 5)))
    with pytest.raises(UnknownTargetError, match="It has: Model"):
        await r.call("scale", pack(ScaleRequest("default", "Modle", 5)))
    await r.deploy(outside())
    with pytest.raises(ConfigError, match=">= 0"):
        await r.call("scale", pack(ScaleRequest("default", "Model", -1)))
    assert await target_of(r) == 1


async def test_refuses_both_demand_and_somebody_outside(r: Rig) -> None:
    with pytest.raises(ConfigError, match="choose one"):
        await r.deploy(outside(autoscaling_config=AutoscalingConfig()))


async def test_a_share_of_capacity_scales_everything(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=4)))
    await r.until_settled()
    await r.call("capacity", pack(CapacityRequest(50)))
    await r.until_settled()
    assert r.num_routable() == 2
    await r.call("capacity", pack(CapacityRequest(0)))
    await r.until_settled()
    assert r.num_routable() == 0
    await r.call("capacity", pack(CapacityRequest(None)))
    await r.until_settled()
    assert r.num_routable() == 4
    with pytest.raises(ConfigError, match="target_capacity"):
        await r.call("capacity", pack(CapacityRequest(101)))


async def test_a_router_that_goes_takes_its_queue_with_it(r: Rig) -> None:
    await r.deploy(scaled(min_replicas=0, initial_replicas=1, upscale_delay_s=1))
    await r.until_settled()
    following = r.controller.autoscaler.demand(Subscription("script", 1))
    wanted = await anext(following)
    assert list(wanted.deployments) == [MODEL]
    r.controller.autoscaler.report(DemandReport("script", {MODEL: 30.0}))
    assert (await detail_of(r)).metrics["queued"] == 30.0
    await following.aclose()
    assert (await detail_of(r)).metrics["queued"] == 0.0
    await asyncio.sleep(10.0)
    assert await target_of(r) == 1
