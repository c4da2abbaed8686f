"""Scaling by demand with real processes: bursts, quiet, from zero, policies, and no lost request."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from tests import engines
from tests.e2e.instances import Instance
from tests.e2e.load import ask, client, get, load
from tests.e2e.scaled_app import Slow, Told
from tests.e2e.waiting import until_async

import remora as serve
from remora.control.client import ControlClient
from remora.simulation import Requests, Service, Simulated, simulate
from remora.simulation.load import Recorded
from remora.simulation.result import quantile
from remora.wire.control import ApplicationStatus
from remora.wire.scaling import ScalingDetail

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(90)]


async def detail_of(shared: Instance, app: str, deployment: str = "Slow") -> ScalingDetail:
    async with ControlClient(shared.home) as control:
        return (await control.scaling(app, deployment))[0]


async def until_detail(
    shared: Instance, app: str, condition: Any, deployment: str = "Slow", timeout_s: float = 30
) -> ScalingDetail:
    async def look() -> Any:
        found = await detail_of(shared, app, deployment)
        return found if condition(found) else None

    found: ScalingDetail = await until_async(look, f"the scaling of {app}", timeout_s)
    return found


def num_running(app: ApplicationStatus | None) -> int:
    return 0 if app is None else app.deployments["Slow"].replica_states.get("RUNNING", 0)


async def test_a_step_load_and_then_quiet_scales_up_and_down_once_each_and_loses_nothing(
    shared: Instance,
) -> None:
    scaled = Slow.options(
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 6,
            "target_ongoing_requests": 2,
            "look_back_period_s": 3,
            "upscale_delay_s": 0.5,
            "downscale_delay_s": 2,
        }
    )
    async with shared.running(scaled.bind(), "step") as url, client() as session:
        ended = asyncio.Event()
        answers = []

        async def caller() -> None:
            while not ended.is_set():
                answers.append(await ask(session, url, method="POST"))

        one = asyncio.create_task(caller())
        await asyncio.sleep(0.5)
        assert (await detail_of(shared, "step")).decisions == ()
        began = time.monotonic()
        others = [asyncio.create_task(caller()) for _ in range(9)]
        # Ten times as many: 10 at a time, 2 for each.
        first = await until_detail(shared, "step", lambda d: d.decisions)
        assert (
            0.5 <= first.decisions[0].at_unix_s - (time.time() - (time.monotonic() - began)) < 1.5
        )
        await until_detail(shared, "step", lambda d: d.running == 5)
        await asyncio.sleep(3.0)
        ended.set()
        await asyncio.gather(one, *others)
        quiet = await until_detail(
            shared, "step", lambda d: (d.target_num_replicas, d.running) == (1, 1)
        )
        assert {answer.status for answer in answers} == {200}
        assert len(answers) > 100
        counts = [quiet.decisions[0].before, *(each.after for each in quiet.decisions)]
        peak = counts.index(max(counts))
        assert counts[peak:] == sorted(counts[peak:], reverse=True)
        # On Ray more and less waits while workers come, so the way up has steps down, too.
        if not engines.is_ray():
            assert counts[: peak + 1] == sorted(counts[: peak + 1])


async def test_from_zero_requests_wait_for_their_replica(shared: Instance) -> None:
    scaled = Slow.options(
        autoscaling_config={
            "min_replicas": 0,
            "max_replicas": 2,
            "look_back_period_s": 1,
            "downscale_delay_s": 0.5,
        }
    )
    async with shared.running(scaled.bind(0.01), "zero") as url:
        # Twice, because the second time the proxy has seen replicas come and go.
        for _ in range(2):
            await until_detail(
                shared, "zero", lambda d: (d.target_num_replicas, d.running) == (0, 0)
            )
            answers = await asyncio.gather(*(get(url) for _ in range(10)))
            assert {answer.status for answer in answers} == {200}
            assert max(each.ended - each.began for each in answers) < engines.patient(5.0)


@pytest.mark.local_only("replicas are forked")
async def test_from_one_to_eight_replicas_in_a_second(shared: Instance) -> None:
    """The best of three, and a second of a machine that is not used by others as well."""
    outside = Slow.options(num_replicas=1)
    took = []
    await shared.deploy(outside.bind(0.0), "eight", route="/eight", external_scaler=True)
    async with shared.deleting("eight"), ControlClient(shared.home) as control:
        for _ in range(3):
            began = time.monotonic()
            await control.scale("eight", "Slow", 8)
            await shared.wait(lambda s: num_running(s.applications.get("eight")) == 8, "8 replicas")
            took.append(time.monotonic() - began)
            await control.scale("eight", "Slow", 1)
            await shared.wait(
                lambda s: (
                    s.applications["eight"].deployments["Slow"].replica_states == {"RUNNING": 1}
                ),
                "1 replica",
            )
    crowd = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    assert min(took) < max(1.0, crowd), took


@pytest.mark.local_only("replicas are forked, so their start is no part of a latency")
async def test_a_simulation_of_the_same_load_has_the_same_latencies(shared: Instance) -> None:
    options = {
        "max_replicas": 6,
        "target_ongoing_requests": 2,
        "look_back_period_s": 5,
        "upscale_delay_s": 1,
        "downscale_delay_s": 5,
    }
    rng = random.Random(5)
    requests = tuple(
        (at, rng.expovariate(1 / 0.2)) for at, _ in Requests.parse("4@4,10@40,4@4").arrivals(rng)
    )
    scaled = Told.options(autoscaling_config=options)
    async with shared.running(scaled.bind(), "told"):
        told = shared.handle("Told", "told")
        await told.remote(0.01)
        began = time.monotonic()

        async def one(took: float) -> float:
            asked = time.monotonic()
            await told.remote(took)
            return time.monotonic() - asked

        tasks, lateness = [], []
        for at, took in requests:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            lateness.append(time.monotonic() - began - at)
            tasks.append(asyncio.create_task(one(took)))
        live = sorted(await asyncio.gather(*tasks))
    # What a machine that others use as well adds, at each of the places where somebody waits.
    late_s = 3 * (quantile(sorted(lateness), 0.9) or 0.0)
    (found,) = simulate(
        [Simulated("Told", scaled.config, Recorded(requests), Service(start_s=0.3))],
        # All of them end, as they did.
        length_s=60,
    )
    assert found.peak > 3
    for part in (0.5, 0.99):
        expected = quantile(live, part)
        assert expected is not None
        assert found.latency_s(part) == pytest.approx(expected, abs=0.2 * expected + late_s)


@serve.deployment
class Worker:
    """Says that much waits for it."""

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"waiting": 9}

    async def __call__(self, request: Any) -> str:
        return "done"


def by_waiting(ctx: Any, per_replica: int = 3) -> Any:
    waiting = ctx.aggregated_metrics.get("waiting", {})
    return max(waiting.values(), default=0) / per_replica, {}


def policy_options(policy: Any, **options: Any) -> dict[str, Any]:
    return {
        "max_replicas": 5,
        "upscale_delay_s": 0,
        "metrics_interval_s": 0.5,
        "policy": policy,
        **options,
    }


async def test_a_policy_of_ones_own_by_metrics_of_ones_own(shared: Instance) -> None:
    scaled = Worker.options(autoscaling_config=policy_options(by_waiting))
    async with shared.running(scaled.bind(), "mine"):
        found = await until_detail(shared, "mine", lambda d: d.running == 3, "Worker")
        assert found.decisions[-1].formula.endswith("by_waiting asked for 3")


def by_its_folder(ctx: Any) -> Any:
    import os

    from ours_for_policies import base  # type: ignore[import-not-found]

    return base + int(os.environ["MORE"]), {}


@pytest.mark.local_only("Ray is given no folders of one node")
async def test_a_policy_has_the_folders_and_variables_of_its_deployment(
    shared: Instance, tmp_path: Path
) -> None:
    (tmp_path / "ours_for_policies.py").write_text("base = 1")
    runtime_env = {"working_dir": str(tmp_path), "env_vars": {"MORE": "2"}}
    scaled = Worker.options(
        autoscaling_config=policy_options(by_its_folder),
        ray_actor_options={"runtime_env": runtime_env},
    )
    async with shared.running(scaled.bind(), "folders"):
        await until_detail(shared, "folders", lambda d: d.running == 3, "Worker")


def loops(ctx: Any) -> Any:
    while True:
        pass


def exits(ctx: Any) -> Any:
    import os

    os._exit(3)


@pytest.mark.parametrize(
    ("policy", "message"),
    [(loops, "did not answer within 5 s"), (exits, "has lost its process")],
    ids=["loops", "exits"],
)
async def test_a_policy_harms_nobody(shared: Instance, policy: Any, message: str) -> None:
    name = f"bad-{policy.__name__}"
    scaled = Worker.options(autoscaling_config=policy_options(policy, initial_replicas=2))
    before = (await shared.status()).controller_pid
    async with shared.running(scaled.bind(), name) as url, load(url) as traffic:
        worst = 0.0

        async def failed() -> Any:
            nonlocal worst
            asked = time.monotonic()
            status = await shared.status()
            worst = max(worst, time.monotonic() - asked)
            return message in status.applications[name].deployments["Worker"].message

        await until_async(failed, "the error of the policy", 30)
        await traffic.more(50)
        app = await shared.app(name)
    assert app.status == "RUNNING"
    assert app.deployments["Worker"].target_num_replicas == 2
    assert traffic.failures == []
    assert (await shared.status()).controller_pid == before
    # The controller has answered all the time.
    assert worst < 2.0
