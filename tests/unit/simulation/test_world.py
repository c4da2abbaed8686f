"""The controller's decisions under simulated loads."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import pytest

from remora.build.scaling import scaling_policy_setup
from remora.config import AutoscalingConfig, AutoscalingPolicy, DeploymentConfig
from remora.errors import PolicyError
from remora.simulation import Requests, Result, Service, Simulated, simulate
from remora.simulation import scaling as scaling_of_simulation
from remora.simulation.plot import svg
from remora.simulation.result import drawn, quantile


def deployment(
    load: str,
    name: str = "Model",
    service: Service | None = None,
    max_ongoing_requests: int = 10,
    **options: Any,
) -> Simulated:
    scaling = AutoscalingConfig(
        **{
            "max_replicas": 10,
            "upscale_delay_s": 5,
            "downscale_delay_s": 60,
            "target_ongoing_requests": 2,
            **options,
        }
    )
    config = DeploymentConfig(max_ongoing_requests=max_ongoing_requests, autoscaling_config=scaling)
    return Simulated(name, config, Requests.parse(load), service or Service(0.2, 1.0))


def only(load: str, **options: Any) -> Result:
    (found,) = simulate([deployment(load, **options)])
    return found


def counts(result: Result) -> list[int]:
    return [each.after for each in result.decisions]


def test_a_step_of_ten_times_scales_up_once_and_down_once() -> None:
    found = only("300@3,60@30,600@3")
    (up, down) = found.decisions
    assert (up.before, down.after) == (1, 1)
    assert 305.0 <= up.at_unix_s <= 307.0
    assert down.at_unix_s >= 360
    assert found.num_unfinished <= 20
    assert found.peak >= 3


def test_every_request_ends_and_draining_loses_none() -> None:
    found = only("60@20,60@1,60@20,300@0", service=Service(0.5, 1.0), downscale_delay_s=5)
    assert found.num_unfinished == 0
    assert len(found.latencies) == sum(sample.arrived for sample in found.samples)


def test_from_zero_the_first_request_waits_for_a_start() -> None:
    found = only("100@0,30@2,300@0,30@2", min_replicas=0, service=Service(0.1, start_s=3.0))
    assert counts(found)[0] == 1
    assert max(found.waits) == pytest.approx(3.0, abs=0.2)
    assert found.samples[90].running == 0
    assert found.samples[-1].running >= 1


def test_the_same_seed_gives_the_same_and_another_one_another() -> None:
    one = deployment("60@5,60@30")
    first, again = (simulate([one], seed=3)[0] for _ in range(2))
    other = simulate([one], seed=4)[0]
    assert (first.samples, first.decisions) == (again.samples, again.decisions)
    assert first.samples != other.samples


def test_other_options_see_the_same_requests() -> None:
    slow, quick = only("60@5,60@30", upscale_delay_s=30), only("60@5,60@30", upscale_delay_s=0)
    assert [s.arrived for s in slow.samples] == [s.arrived for s in quick.samples]


def test_latencies_are_those_of_a_queue() -> None:
    """One replica that works on one request at a time, at half its strength: an M/M/1 queue."""
    found = only(
        "4000@5",
        service=Service(0.1, 1.0, parallel=1),
        max_replicas=1,
        max_ongoing_requests=1000,
    )
    mean_s = statistics.fmean(found.latencies)
    assert mean_s == pytest.approx(0.1 / (1 - 0.5), rel=0.1)
    p99_s = found.latency_s(0.99)
    assert p99_s == pytest.approx(0.2 * 4.605, rel=0.15)


def up_by_the_clock(ctx: Any) -> Any:
    return (6 if ctx.current_time > 100 else 2), {}


def fails(ctx: Any) -> Any:
    raise KeyError("no such metric")


def with_policy(policy: Any) -> Simulated:
    import msgspec

    one = deployment("200@5")
    setup = scaling_policy_setup(AutoscalingPolicy(policy_function=policy), "policy")
    return Simulated(one.name, msgspec.structs.replace(one.config, scaling_policy=setup), one.load)


def test_policies_of_users_decide_here_too() -> None:
    (found,) = simulate([with_policy(up_by_the_clock)])
    assert counts(found) == [2, 6]
    assert found.decisions[1].at_unix_s == pytest.approx(106, abs=1.5)


def hangs(ctx: Any) -> Any:
    threading.Event().wait(1.0)
    return 1, {}


def test_a_policy_has_the_time_that_it_has_in_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_of_simulation, "ANSWER_LIMIT_S", 0.05)
    with pytest.raises(PolicyError, match=r"hangs did not answer within 0\.05 s, the limit in an"):
        simulate([with_policy(hangs)])


def test_a_policy_that_fails_says_so() -> None:
    with pytest.raises(PolicyError, match="no such metric"):
        simulate([with_policy(fails)])


@pytest.mark.slow
def test_thirty_minutes_of_three_deployments_take_less_than_two_seconds() -> None:
    three = [
        deployment("300@5,60@50,1440@5", "steps"),
        deployment("900@1-20,900@20-1", "slopes"),
        deployment("600@0,120@10,1080@0.02", "rare", min_replicas=0),
    ]
    # Processor time, because other tests run beside this one.
    began = time.process_time()
    found = simulate(three)
    assert time.process_time() - began < 2.0
    assert [len(each.samples) for each in found] == [1800] * 3
    assert sum(len(each.latencies) for each in found) > 20_000
    assert all(each.decisions for each in found)


def test_draws_text_and_a_picture() -> None:
    found = simulate([deployment("60@5,60@30", "A & B")])
    text = drawn(found, width=40)
    assert text.splitlines()[0].startswith("A & B: ")
    for name in ("requests/s", "target", "running", "queued", "p99"):
        assert f"  {name:<10} " in text
    assert f"{found[0].decisions[0].before} -> {found[0].decisions[0].after}" in text
    picture = svg(found)
    from xml.etree import ElementTree

    root = ElementTree.fromstring(picture)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 7
    assert all(len(line.attrib["points"].split()) == 120 for line in lines)
    assert "A &amp; B" in picture


def test_quantiles() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([7], 0.99) == 7


def test_nothing_happens_without_requests() -> None:
    found = only("30@0")
    assert (found.latencies, found.decisions, found.latency_s(0.5)) == ([], [], None)
    assert "0 requests" in drawn([found])
