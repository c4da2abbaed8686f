"""Which policy is asked about what, how long one that fails rests, and what is said of all that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.core.autoscale.pace import REPORT_S, report_interval_s
from remora.core.autoscale.policies import FIRST_PAUSE_S, LONGEST_PAUSE_S, pause_s, policies_of
from remora.core.autoscale.status import direction, metrics_health
from remora.options.autoscaling import ScalingPolicySetup

setups = st.builds(ScalingPolicySetup, path=st.sampled_from(["", "", "m:one", "m:two"]))
of_deployments = st.dictionaries(st.sampled_from("ABCD"), setups)


@given(setups, of_deployments)
def test_at_most_one_policy_is_asked_about_each_deployment_and_that_of_the_application_goes_first(
    of_all: ScalingPolicySetup, of_each: dict[str, ScalingPolicySetup]
) -> None:
    found = policies_of(of_all, of_each)
    asked = [name for _, names in found.values() for name in names]
    assert len(asked) == len(set(asked))
    assert all(setup.path for setup, _ in found.values())
    if of_all.path:
        assert set(asked) == set(of_each)
        assert all(setup is of_all for setup, _ in found.values())
    else:
        assert set(asked) == {name for name, own in of_each.items() if own.path}


@given(st.integers(1, 10_000))
def test_a_policy_rests_longer_each_time_and_never_too_long(failures: int) -> None:
    assert pause_s(1) == FIRST_PAUSE_S
    assert pause_s(failures) <= pause_s(failures + 1) <= LONGEST_PAUSE_S


@given(st.integers(0, 100_000), st.floats(0.25, 100), st.integers(1, 5000))
def test_sources_report_as_often_as_can_be_taken_and_are_seldom_told_anew(
    sources: int, told_s: float, most_per_s: int
) -> None:
    interval_s = report_interval_s(sources, told_s, most_per_s)
    needed_s = max(REPORT_S, sources / most_per_s)
    assert needed_s / 2 <= interval_s <= needed_s * 2
    assert interval_s in (told_s, needed_s)
    assert report_interval_s(sources, interval_s, most_per_s) == interval_s
    # A few more or fewer change nothing.
    assert report_interval_s(sources + sources // 4, needed_s, most_per_s) == needed_s


def test_what_is_said_of_numbers_and_of_reports() -> None:
    assert [direction(running, 2) for running in (1, 2, 3)] == [
        "UPSCALING",
        "STABLE",
        "DOWNSCALING",
    ]


@pytest.mark.parametrize(
    ("running", "unheard", "silent", "said"),
    [
        (0, 0, 0, "healthy"),
        (2, 1, 0, "healthy"),
        (2, 1, 1, "delayed"),
        (2, 2, 2, "unavailable"),
        (0, 0, 1, "delayed"),
    ],
)
def test_how_far_the_demand_is_known(running: int, unheard: int, silent: int, said: str) -> None:
    assert metrics_health(running, unheard, silent) == said
