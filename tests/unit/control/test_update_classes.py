"""Changing one option of a running deployment does what its update class says, and no more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.config import (
    AutoscalingConfig,
    BackpressureConfig,
    DeploymentActorConfig,
    DeploymentConfig,
    GangSchedulingConfig,
    PolicySetup,
    RequestRouterConfig,
    RuntimeEnv,
    ScalingPolicySetup,
    WarmupRequest,
)
from remora.core.update_class import UPDATE_CLASS, UpdateClass, heaviest
from remora.options.logging import LoggingConfig

pytestmark = pytest.mark.virtual_time

#: Another value than the default, for each option.
CHANGED: dict[str, Any] = {
    "num_replicas": 3,
    "max_ongoing_requests": 7,
    "max_queued_requests": 9,
    "user_config": {"k": 1},
    "health_check_period_s": 5.0,
    "health_check_timeout_s": 7.0,
    "graceful_shutdown_wait_loop_s": 1.0,
    "graceful_shutdown_timeout_s": 3.0,
    "max_constructor_retry_count": 2,
    "rolling_update_percentage": 0.5,
    "max_surge_percent": 50,
    "rollback": "auto",
    "required_ready_replicas": 1,
    "warmup_requests": (WarmupRequest(path="/"),),
    "backpressure_config": BackpressureConfig(status_code=429),
    "idempotent": True,
    "resources": {"CPU": 1.0},
    "env_vars": {"A": "1"},
    "runtime_env": RuntimeEnv(packages=("a",)),
    "label_selector": {"zone": "!us"},
    "fallback_selectors": ({"zone": "!eu"},),
    "max_replicas_per_node": 9,
    "placement_group_bundles": ({"CPU": 1.0},),
    "placement_group_strategy": "SPREAD",
    "placement_group_bundle_label_selector": ({"zone": "!us"},),
    "gang_scheduling_config": GangSchedulingConfig(gang_size=2),
    "preload": ("json",),
    "deployment_actors": (DeploymentActorConfig(name="a", actor_class="m:A", init_args=[]),),
    "actors": {"a": "Actor"},
    "actor_of": "Other",
    "actor_name": "a",
    "request_router_config": RequestRouterConfig(request_routing_stats_period_s=3.0),
    "policy": PolicySetup("round_robin"),
    "autoscaling_config": AutoscalingConfig(min_replicas=2, max_replicas=2),
    "logging_config": LoggingConfig(log_level="DEBUG"),
    "scaling_policy": ScalingPolicySetup(kwargs={"a": 1}),
}


@pytest.mark.parametrize("option", sorted(UPDATE_CLASS))
async def test_an_option_costs_what_its_class_says(r: Rig, option: str) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_settled()
    before = {replica.pid: len(replica.calls) for replica in r.replicas.serving}
    options = {"num_replicas": 2, option: CHANGED[option]}
    # An actor that the new version waits for.
    await r.deploy(app("default", deployment(**options), deployment("Actor")))
    await r.until_settled()
    await asyncio.sleep(1.0)
    kept = {replica.pid: replica for replica in r.replicas.serving if replica.pid in before}
    calls = [call for pid in kept for call in kept[pid].calls[before[pid] :]]
    match UPDATE_CLASS[option]:
        case UpdateClass.LIGHTWEIGHT:
            assert (len(kept), calls) == (2, [])
        case UpdateClass.RECONFIGURE:
            assert (len(kept), calls) == (2, ["reconfigure"] * 2)
        case UpdateClass.RESTART:
            assert not kept
    target = r.controller.state.applications["default"].deployments["Model"].target
    assert getattr(target.config, option) == CHANGED[option]


def test_every_option_has_a_class() -> None:
    assert set(UPDATE_CLASS) == set(DeploymentConfig.__struct_fields__)


def test_the_heaviest_of_several_changes_counts() -> None:
    base = DeploymentConfig()
    assert heaviest(base, base) is None
    assert heaviest(base, DeploymentConfig(num_replicas=2)) is UpdateClass.LIGHTWEIGHT
    mixed = DeploymentConfig(num_replicas=2, user_config={"k": 1})
    assert heaviest(base, mixed) is UpdateClass.RECONFIGURE
    assert heaviest(mixed, DeploymentConfig(env_vars={"A": "1"})) is UpdateClass.RESTART


async def test_code_and_ingress_restart_and_a_route_prefix_does_not(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_settled()
    pids = {replica.pid for replica in r.replicas.serving}
    await r.deploy(app("default", deployment(num_replicas=2), route_prefix="/moved"))
    await r.until_settled()
    assert {replica.pid for replica in r.replicas.serving} == pids
    assert r.snapshot.apps["default"].route_prefix == "/moved"
    await r.deploy(app("default", deployment(version="2", num_replicas=2)))
    await r.until_settled()
    assert not {replica.pid for replica in r.replicas.serving} & pids


async def test_a_deploy_of_one_application_leaves_the_others_alone(r: Rig) -> None:
    await r.deploy(app("one", route_prefix="/one"), app("two", route_prefix="/two"))
    await r.until_settled("one")
    await r.until_settled("two")
    before = {each for each in r.engine.processes if each.startswith("two/")}
    assert len(before) == 1
    await r.deploy(app("one", deployment(version="2"), route_prefix="/one"))
    await r.until_settled("one")
    assert {each for each in r.engine.processes if each.startswith("two/")} == before
