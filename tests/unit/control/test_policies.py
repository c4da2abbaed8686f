"""Policies of users: what they are asked, what comes of their answers, and what they cannot do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from tests.unit.control.rig import Rig, app, deployment
from tests.unit.control.test_autoscaler import Load, detail_of, now, target_of, until_target

from remora.build.scaling import scaling_policy_setup
from remora.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from remora.control.policies import ANSWER_LIMIT_S, ASK_EVERY_S
from remora.control.policy_process import PolicyRunner
from remora.core.autoscale.demand import MAX_NAMES
from remora.engine.base import ProcessPreparing, ProcessSpec
from remora.errors import ConnectionLostError
from remora.options.autoscaling import ScalingPolicySetup
from remora.options.resources import RuntimeEnv
from remora.testing import FakeEngine
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.control import (
    ApplicationSpec,
    BuildResult,
    ConfigRequest,
    DeclaredApplication,
    DeploymentSpec,
    Surroundings,
)
from remora.wire.scaling import PolicySpec

pytestmark = pytest.mark.virtual_time

T = TypeVar("T")


class PolicyLink:
    """A connection to the process of a policy."""

    def __init__(self, rig: PolicyRig, process_id: str) -> None:
        self._rig = rig
        self._process_id = process_id
        self._runner = rig.runners.setdefault(process_id, PolicyRunner())

    @property
    def is_open(self) -> bool:
        return self._process_id in self._rig.engine.processes

    async def call(
        self,
        method: str,
        body: msgspec.Struct | None = None,
        reply: type[T] | None = None,
        timeout_s: float | None = None,
    ) -> T | None:
        if not self.is_open:
            raise ConnectionLostError("the process is gone")
        made = self._runner.handlers[method](pack(body))
        assert not hasattr(made, "__aiter__")
        async with asyncio.timeout(timeout_s):
            answer = await made
        return unpack(answer, reply) if reply is not None else None

    def stream(self, method: str, body: msgspec.Struct | None, item: type[T]) -> Any:
        raise AssertionError(method)

    def close(self) -> None: ...


class PolicyRig(Rig):
    """A rig whose processes of policies are there, on its loop."""

    def __init__(self) -> None:
        super().__init__(FakeEngine())
        self.runners: dict[str, PolicyRunner] = {}
        found = self.replicas.connect

        async def connect(address: str) -> Any:
            for process_id, process in self.engine.processes.items():
                if process.address == address and process_id.startswith("policy:"):
                    return PolicyLink(self, process_id)
            return await found(address)

        self.connect = connect

    @property
    def policies(self) -> list[str]:
        """Ids of the processes of policies that live."""
        return [each for each in self.engine.processes if each.startswith("policy:")]


@pytest.fixture
async def r() -> AsyncIterator[PolicyRig]:
    made = PolicyRig()
    await made.start()
    yield made
    await made.stop()


def model(policy: Any, name: str = "Model", **options: Any) -> DeploymentSpec:
    """A deployment with a policy."""
    given = (
        policy
        if isinstance(policy, AutoscalingPolicy)
        else AutoscalingPolicy(policy_function=policy)
    )
    config = AutoscalingConfig(
        **{"max_replicas": 10, "upscale_delay_s": 0, "downscale_delay_s": 0, **options}
    )
    return deployment(
        name, autoscaling_config=config, scaling_policy=scaling_policy_setup(given, "policy")
    )


def with_policy(policy: Any, **options: Any) -> ApplicationSpec:
    return ApplicationSpec(
        name="default",
        route_prefix="/",
        ingress="Model",
        deployments=(model(policy, **options),),
    )


def three(ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    return 2.2, {}


def counts_calls(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    calls = ctx.policy_state.get("calls", 0) + 1
    return min(1 + calls // 3, 4), {"calls": calls}


class Averages:
    """A class with arguments, and a state of its own."""

    def __init__(self, per_replica: float) -> None:
        self.per_replica = per_replica

    async def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        await asyncio.sleep(0.01)
        waiting = ctx.aggregated_metrics.get("waiting", {})
        assert set(waiting) == {r for r in ctx.running_replicas if r in waiting}
        return sum(waiting.values()) / self.per_replica, {}


async def test_what_a_policy_asks_for_is_rounded_up(r: PolicyRig) -> None:
    await r.deploy(with_policy(three))
    await until_target(r, 3)
    await r.until_settled()
    detail = await detail_of(r)
    assert detail.decisions[0].formula.endswith("three asked for 2.2")


async def test_delays_and_bounds_hold_for_every_policy(r: PolicyRig) -> None:
    await r.deploy(with_policy(three, upscale_delay_s=20, max_replicas=2))
    await r.until_settled()
    took = await until_target(r, 2)
    assert 20.0 <= took <= 20.0 + 2 * ASK_EVERY_S


async def test_a_policy_gets_back_what_it_returned(r: PolicyRig) -> None:
    await r.deploy(with_policy(counts_calls))
    took = await until_target(r, 4)
    assert 8 * ASK_EVERY_S <= took <= 11 * ASK_EVERY_S


async def test_a_class_decides_by_what_replicas_record(r: PolicyRig) -> None:
    policy = AutoscalingPolicy(policy_function=Averages, policy_kwargs={"per_replica": 5})
    await r.deploy(with_policy(policy, look_back_period_s=1, metrics_interval_s=1))
    await r.until_settled()
    (only,) = r.replicas.serving
    only.metrics = {"waiting": 20.0}
    only.work_on(0.0)
    await until_target(r, 4)
    detail = await detail_of(r)
    assert detail.metrics[f"waiting[{only.process_id}]"] == 20.0


async def test_names_of_what_replicas_record_are_bounded_and_go_when_they_are_not_recorded(
    r: PolicyRig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await r.deploy(with_policy(three, look_back_period_s=1, metrics_interval_s=1))
    await until_target(r, 3)
    await r.until_settled()
    one = r.replicas.serving[0]
    one.metrics = {f"request {number}": 1.0 for number in range(MAX_NAMES + 20)}
    one.work_on(0.0)
    await asyncio.sleep(3.0)
    assert sum("request" in name for name in (await detail_of(r)).metrics) == MAX_NAMES
    one.metrics = {"waiting": 2.0}
    one.work_on(0.0)
    await asyncio.sleep(5.0)
    one.work_on(1.0)
    await asyncio.sleep(1.0)
    recorded = [name for name in (await detail_of(r)).metrics if "[" in name]
    assert recorded == [f"waiting[{one.process_id}]"]
    assert caplog.text.count("record more than 100 metrics") == 1


def raises(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    raise KeyError("no such metric")


def is_nonsense(ctx: AutoscalingContext) -> Any:
    return "many"


def is_negative(ctx: AutoscalingContext) -> Any:
    return -3, {}


def returns_no_dict(ctx: AutoscalingContext) -> Any:
    return 3, ["a", "list"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (raises, "KeyError: 'no such metric'"),
        (is_nonsense, "returned 'many': a policy returns a number of replicas"),
        (is_negative, "returned -3: a policy returns a number of replicas, >= 0"),
        (returns_no_dict, "and a dict"),
    ],
)
async def test_a_policy_that_fails_keeps_the_number_and_status_says_why(
    r: PolicyRig, policy: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    load = Load(r)
    await r.deploy(with_policy(policy, initial_replicas=3))
    # It runs from the start, whatever the policy does.
    await r.until_running()
    load.set(100.0)
    await asyncio.sleep(60.0)
    assert await target_of(r) == 3
    status = await r.status()
    assert status is not None
    assert message in status.deployments["Model"].message
    assert status.status == "RUNNING"
    (error,) = (await detail_of(r)).errors
    assert message in error
    # The process of a policy that raises lives on: it may do better next time.
    assert len(r.policies) == 1
    (family,) = (
        each
        for each in await r.controller.metrics.read()
        if each.name == "serve_autoscaling_policy_errors"
    )
    assert family.rows["default", "Model"][0] > 10
    assert len([each for each in caplog.records if message in each.getMessage()]) == 1


def says_another_thing_each_time(ctx: AutoscalingContext) -> Any:
    raise TimeoutError(f"timed out after {ctx.current_time} s")


async def test_a_policy_with_another_error_each_time_does_not_fill_the_log(
    r: PolicyRig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await r.deploy(with_policy(says_another_thing_each_time, initial_replicas=3))
    await asyncio.sleep(500.0)
    (error,) = (await detail_of(r)).errors
    assert "timed out after" in error
    assert len([each for each in caplog.records if "timed out after" in each.getMessage()]) == 5


async def test_an_environment_may_take_its_time_and_is_no_error_of_the_policy(r: PolicyRig) -> None:
    r.engine.start_delay_s = lambda spec: 200.0 if spec.process_id.startswith("policy:") else 0.1
    deployed = asyncio.create_task(r.deploy(with_policy(three)))
    await deployed
    while not r.policies:
        await asyncio.sleep(0.1)
    (first,) = r.policies
    r.controller._policies.note(ProcessPreparing(first, "building its environment"))
    await asyncio.sleep(100.0)
    assert r.policies == [first]
    status = await r.status()
    assert status is not None
    assert "not asked yet: building its env" in status.deployments["Model"].message
    await until_target(r, 3)
    assert (await detail_of(r)).errors == ()


async def test_a_process_that_does_not_come_up_is_told_with_a_reason(r: PolicyRig) -> None:
    r.engine.start_delay_s = lambda spec: 200.0 if spec.process_id.startswith("policy:") else 0.1
    await r.deploy(with_policy(three))
    await asyncio.sleep(70.0)
    (error,) = (await detail_of(r)).errors
    assert error.endswith("cannot be asked: its process was not up within 60 s")
    (family,) = (
        each
        for each in await r.controller.metrics.read()
        if each.name == "serve_autoscaling_policy_errors"
    )
    assert family.rows["default", "Model"][0] == 0


class Recovers:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        self.calls += 1
        if self.calls < 5:
            raise ValueError("not yet")
        return 4, {}


async def test_a_policy_that_recovers_is_followed_again(r: PolicyRig) -> None:
    await r.deploy(with_policy(Recovers))
    await until_target(r, 4)
    await r.until_settled()
    assert (await detail_of(r)).errors == ()
    status = await r.status()
    assert status is not None
    assert status.deployments["Model"].message == ""


async def hangs(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_a_policy_without_an_answer_loses_its_process_and_nothing_else_waits(
    r: PolicyRig,
) -> None:
    await r.deploy(with_policy(hangs))
    await r.until_running()
    (first,) = r.policies
    worst = 0.0
    began = now()
    while now() - began < 2 * ANSWER_LIMIT_S + 4.0:
        before = now()
        await r.deploy(with_policy(hangs))
        worst = max(worst, now() - before)
        await asyncio.sleep(0.5)
    assert worst < 0.1
    assert first not in r.policies
    status = await r.status()
    assert status is not None
    assert f"did not answer within {ANSWER_LIMIT_S:g} s" in status.deployments["Model"].message
    assert await target_of(r) == 1


async def test_a_policy_whose_process_dies_gets_another_one(r: PolicyRig) -> None:
    await r.deploy(with_policy(three, upscale_delay_s=60))
    await r.until_running()
    await asyncio.sleep(5.0)
    (first,) = r.policies
    r.engine.crash(first)
    await asyncio.sleep(5.0)
    (second,) = r.policies
    assert second != first
    await until_target(r, 3)


async def test_processes_of_policies_end_with_their_deployment_and_their_controller(
    r: PolicyRig,
) -> None:
    await r.deploy(with_policy(three))
    await until_target(r, 3)
    await r.until_settled()
    (first,) = r.policies
    await r.stop()
    await r.start()
    await r.until_settled()
    await asyncio.sleep(5.0)
    assert await target_of(r) == 3
    assert len(r.policies) == 1
    assert r.policies != [first]
    plain = AutoscalingConfig(max_replicas=3)
    spec = ApplicationSpec(
        name="default",
        route_prefix="/",
        ingress="Model",
        deployments=(deployment(autoscaling_config=plain),),
    )
    await r.deploy(spec)
    await asyncio.sleep(1.0)
    assert r.policies == []
    assert (await detail_of(r)).latest is not None


# ------------------------------------------------------------------- the policy of an application


def by_names(contexts: dict[DeploymentID, AutoscalingContext]) -> Any:
    found = {where: len(where.name) for where in contexts if where.name != "Kept"}
    return found, {where: {"seen": ctx.app_name} for where, ctx in contexts.items()}


def names_a_stranger(contexts: dict[DeploymentID, AutoscalingContext]) -> Any:
    return {DeploymentID("Stranger"): 3}, None


def an_application(policy: Any, *names: str) -> ApplicationSpec:
    setup = scaling_policy_setup(AutoscalingPolicy(policy_function=policy), "policy")
    return ApplicationSpec(
        name="default",
        route_prefix="/",
        ingress=names[0],
        # Their own policies have nothing to say any more.
        deployments=tuple(model(raises, name, initial_replicas=2) for name in names),
        scaling_policy=setup,
    )


async def test_a_policy_of_an_application_decides_for_all_and_may_leave_some_out(
    r: PolicyRig,
) -> None:
    await r.deploy(an_application(by_names, "A", "Four", "Kept"))
    await r.until_running()
    await asyncio.sleep(10.0)
    status = await r.status()
    assert status is not None
    found = {n: d.target_num_replicas for n, d in status.deployments.items()}
    assert found == {"A": 1, "Four": 4, "Kept": 2}
    assert len(r.policies) == 1


async def test_a_policy_that_names_a_stranger_is_told_whom_it_may_name(r: PolicyRig) -> None:
    await r.deploy(an_application(names_a_stranger, "Model"))
    await r.until_running()
    await asyncio.sleep(10.0)
    (error,) = (await detail_of(r)).errors
    assert "decided about" in error
    assert "there are: default/Model" in error


async def test_from_zero_a_request_needs_no_policy(r: PolicyRig) -> None:
    load = Load(r)
    await r.deploy(with_policy(raises, min_replicas=0))
    await r.until_running()
    before = now()
    load.set(1.0)
    await until_target(r, 1)
    assert now() - before < 0.1


async def test_a_policy_has_the_environment_of_its_deployment(r: PolicyRig) -> None:
    async def environment(env: RuntimeEnv, **env_vars: str) -> ProcessSpec:
        spec = model(three)
        config = msgspec.structs.replace(spec.config, env_vars=env_vars, runtime_env=env)
        await r.deploy(app("default", msgspec.structs.replace(spec, config=config)))
        await r.until_settled()
        await asyncio.sleep(2 * ASK_EVERY_S)
        (policy,) = r.policies
        return r.engine.processes[policy].spec

    packages = RuntimeEnv(packages=("a",))
    first = await environment(packages, WHERE="here")
    assert (first.env, first.runtime_env) == ({"WHERE": "here"}, packages)
    again = await environment(packages, WHERE="here")
    assert again.process_id == first.process_id
    other = await environment(packages, WHERE="there")
    assert other.process_id != first.process_id
    assert other.env == {"WHERE": "there"}


async def test_the_policy_of_an_application_has_what_its_config_says_for_all(r: PolicyRig) -> None:
    folder = RuntimeEnv(working_dir="/code", digests=("1",), excluded=((),))
    r.replicas.describe = lambda _: BuildResult(application=an_application(by_names, "Four"))
    declared = DeclaredApplication(
        name="default",
        route_prefix="/",
        given=b"{}",
        env={"WHERE": "here"},
        runtime_env=folder,
    )
    request = ConfigRequest(applications=(declared,), source="test")
    await r.call("submit", pack(request))
    await r.until_settled()
    (only,) = r.policies
    spec = r.engine.processes[only].spec
    assert (spec.env, spec.runtime_env) == ({"WHERE": "here"}, folder)


async def test_it_imports_from_its_own_folders_first(tmp_path: Path) -> None:
    folders = []
    for name in ("own", "shared"):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        (folders[-1] / "policy_of_a_folder.py").write_text(
            f"def policy(ctx): return {name!r}, {{}}"
        )
    code = b"cpolicy_of_a_folder\npolicy\n."
    spec = PolicySpec(
        setup=ScalingPolicySetup(path="policy", code=code),
        surroundings=Surroundings(sys_path=(str(folders[1]),)),
        scope="deployment",
        name="The policy",
    )
    before = list(sys.path)
    try:
        runner = PolicyRunner((str(folders[0]),))
        await runner.handlers["load"](pack(spec))  # type: ignore[misc]
        assert sys.modules["policy_of_a_folder"].__file__ == str(
            folders[0] / "policy_of_a_folder.py"
        )
    finally:
        sys.path[:] = before
        sys.modules.pop("policy_of_a_folder", None)
