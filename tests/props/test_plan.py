"""What `plan` says is what a deploy then does: random pairs of configs, on a virtual clock."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.control.rig import Rig, app, deployment, rig

from remora.config import GangSchedulingConfig
from remora.core.reconcile import Step, step
from remora.core.replica_state import STAYING
from remora.core.state import ControllerState
from remora.testing.virtual_time import run
from remora.types import DeploymentID, ReplicaID
from remora.wire.codec import pack, unpack
from remora.wire.control import BuildResult, ConfigRequest, DeclaredApplication, DeploymentSpec
from remora.wire.plan import DeploymentPlan, Plan

Config = dict[str, Any]

_DEPLOYMENT = st.fixed_dictionaries(
    {
        "version": st.sampled_from(["1", "2"]),
        "num_replicas": st.integers(1, 5),
        "user_config": st.sampled_from([None, 1]),
        "max_queued_requests": st.sampled_from([-1, 5]),
        "max_surge_percent": st.sampled_from([0, 50, 100]),
        "rolling_update_percentage": st.sampled_from([0.2, 0.5, 1.0]),
        "gang": st.sampled_from([1, 1, 2, 3]),
    }
)
_APPLICATION = st.fixed_dictionaries(
    {"deployments": st.dictionaries(st.sampled_from(["F", "G"]), _DEPLOYMENT, min_size=1)}
)
_ROUTES = st.permutations(["/x", "/y", None])


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """An application or two, each with a route of its own or none."""
    names = draw(st.sets(st.sampled_from(["a", "b"])))
    routes = draw(_ROUTES)
    return {
        name: {**draw(_APPLICATION), "route": routes[index]}
        for index, name in enumerate(sorted(names))
    }


def request(config: Config) -> ConfigRequest:
    applications = tuple(
        DeclaredApplication(name=name, route_prefix=each["route"], given=json.dumps(each).encode())
        for name, each in config.items()
    )
    return ConfigRequest(applications=applications, source="test")


def of(name: str, gang: int = 1, num_replicas: int = 1, **options: Any) -> DeploymentSpec:
    """Describe a deployment of gangs, as many as replicas are given, or of single replicas."""
    if gang > 1:
        options["gang_scheduling_config"] = GangSchedulingConfig(gang_size=gang)
    return deployment(name, num_replicas=num_replicas * gang, **options)


def describe(declared: DeclaredApplication) -> BuildResult:
    given = json.loads(declared.given)
    made = app(
        declared.name,
        *(of(name, **options) for name, options in sorted(given["deployments"].items())),
        route_prefix=declared.route_prefix,
    )
    return BuildResult(application=made)


Replicas = dict[DeploymentID, set[ReplicaID]]


def staying(state: ControllerState) -> Replicas:
    return {
        DeploymentID(each.name, app.name): {
            replica.replica_id for replica in each.in_state(*STAYING)
        }
        for app in state.applications.values()
        for each in app.deployments.values()
    }


@dataclass
class Watched:
    """What a deploy did, seen at every step of the controller."""

    samples: list[Replicas] = field(default_factory=list)

    def step(self, state: ControllerState, events: Any, now: float, **options: Any) -> Step:
        made = step(state, events, now, **options)
        self.samples.append(staying(made.state))
        return made

    def peak(self, where: DeploymentID) -> int:
        return max((len(each.get(where, ())) for each in self.samples), default=0)


async def settled(r: Rig) -> None:
    changed = r.controller.watch()
    async with asyncio.timeout(1000.0):
        while True:
            changed.clear()
            state = r.controller.state
            status = await r.admin.status()
            removed = any(
                each.removed
                for app in state.applications.values()
                for each in app.deployments.values()
            )
            if (
                state.submission is None
                and not removed
                and all(
                    each.status == "RUNNING"
                    and all(set(d.replica_states) == {"RUNNING"} for d in each.deployments.values())
                    for each in status.applications.values()
                )
            ):
                break
            await changed.wait()
    r.controller.unwatch(changed)


async def planned(r: Rig, config: Config) -> Plan:
    made = r.admin.handlers["plan"](pack(request(config)))
    assert not hasattr(made, "__aiter__")
    return unpack(await made, Plan)


async def deploy(r: Rig, config: Config) -> None:
    await r.call("submit", pack(request(config)))
    await settled(r)


def check(
    r: Rig, each: DeploymentPlan, old: set[ReplicaID], new: set[ReplicaID], told: Any
) -> None:
    """Compare what was planned for a deployment with what happened to its replicas."""
    assert len(old) == each.before
    assert len(new) == each.after
    calls = {key: told(key) for key in old & new}
    if "roll" in each.steps or "delete" in each.steps or "create" in each.steps:
        assert not old & new
        return
    assert len(new - old) == max(0, each.after - each.before)
    assert len(old - new) == max(0, each.before - each.after)
    expected = 1 if "reconfigure" in each.steps else 0
    assert set(calls.values()) <= {expected}, (each, calls)
    assert each.steps or not each.changed


def same_gangs(first: Config, second: Config, where: DeploymentID) -> bool:
    """Say whether the gangs of both have one size; with others the peak is a bound."""
    sizes = [
        each[where.app_name]["deployments"][where.name].get("gang", 1)
        for each in (first, second)
        if where.name in each.get(where.app_name, {}).get("deployments", {})
    ]
    return len(set(sizes)) == 1


_TWO = {"version": "1", "num_replicas": 2}


@settings(max_examples=60, deadline=None)
@given(first=configs(), second=configs())
@example(
    first={
        "a": {"deployments": {"F": _TWO}, "route": "/x"},
        "b": {"deployments": {"F": _TWO}, "route": "/y"},
    },
    second={
        "a": {"deployments": {"F": {**_TWO, "version": "2"}}, "route": "/y"},
        "b": {"deployments": {"F": _TWO}, "route": "/x"},
    },
)
def test_a_deploy_does_what_its_plan_says(first: Config, second: Config) -> None:
    async def main() -> None:
        async with rig() as r:
            r.replicas.describe = describe
            await deploy(r, first)
            before = staying(r.controller.state)
            routes = {name: each.route_prefix for name, each in r.snapshot.apps.items()}
            plan = await planned(r, second)
            assert staying(r.controller.state) == before, "a plan changes nothing"
            called = {
                key: replica.calls.count("reconfigure") for key, replica in r.replicas.by_id.items()
            }
            watched = Watched([before])
            with patch("remora.control.controller.step", watched.step):
                await deploy(r, second)
            after = staying(r.controller.state)
            assert {each.name for each in plan.applications} == {*first, *second}
            for each in plan.applications:
                assert each.route_before == routes.get(each.name)
                now = r.snapshot.apps.get(each.name)
                assert each.route_after == (now.route_prefix if now is not None else None)
                assert (now is None) == (each.action == "delete")
                for one in each.deployments:
                    where = DeploymentID(one.name, each.name)
                    check(
                        r,
                        one,
                        before.get(where, set()),
                        after.get(where, set()),
                        lambda key: (
                            r.replicas.by_id[key].calls.count("reconfigure") - called.get(key, 0)
                        ),
                    )
                    assert watched.peak(where) <= one.peak, one
                    if same_gangs(first, second, where):
                        assert watched.peak(where) == one.peak, one
                if each.action == "none":
                    assert not any(one.steps for one in each.deployments)

    run(main())


@given(config=configs())
@settings(max_examples=20, deadline=None)
def test_the_plan_of_what_runs_already_is_empty(config: Config) -> None:
    async def main() -> None:
        async with rig() as r:
            r.replicas.describe = describe
            await deploy(r, config)
            plan = await planned(r, config)
            assert {each.action for each in plan.applications} <= {"none"}
            assert not any(one.changed for each in plan.applications for one in each.deployments)

    run(main())


def test_an_import_that_fails_is_in_the_plan_and_its_route_stays() -> None:
    async def main() -> None:
        async with rig() as r:
            r.replicas.describe = describe
            one = {"deployments": {"F": _TWO}}
            await deploy(r, {"a": {**one, "route": "/x"}})
            r.replicas.describe = lambda declared: (
                BuildResult(error="Traceback: x") if declared.name == "a" else describe(declared)
            )
            plan = await planned(r, {"a": {**one, "route": None}, "b": {**one, "route": "/x"}})
            first, second = plan.applications
            assert (first.action, first.route_after) == ("fail", "/x")
            assert "Traceback: x" in first.error
            assert second.action == "fail"
            assert "belongs to application 'a'" in second.error

    run(main())
