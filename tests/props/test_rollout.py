from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from tests.props import strategies as own
from tests.props.strategies import Rollout

from remora.config import DeploymentConfig, GangSchedulingConfig
from remora.core import rollout
from remora.core.replica_state import ReplicaState
from remora.core.rollout import Bounds, Member, Plan, most_beside, plan
from remora.types import ReplicaID

NOT_LEAVING = {ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.RUNNING}


def replicas(members: Iterable[Member]) -> int:
    return sum(member.size for member in members)


def planned(case: Rollout) -> Plan:
    return plan(case.members, case.target, case.limits, case.before)


def running(case: Rollout) -> list[Member]:
    return [member for member in case.members if member.state is ReplicaState.RUNNING]


def left(case: Rollout, step: Plan) -> int:
    """How many replicas run when those that may go have gone."""
    return replicas(member for member in running(case) if member.replica_id not in step.drain)


@given(own.rollouts())
def test_never_grows_above_surge_and_target_of_both_versions(case: Rollout) -> None:
    step = planned(case)
    staying = [m for m in case.members if m.state in NOT_LEAVING]
    grown = replicas(m for m in staying if m.replica_id not in step.cancel)
    grown += step.start * case.limits.size
    assert step.start >= 0
    if step.start:
        old = [m.size for m in running(case) if not m.current]
        # A gang that is bigger than the surge needs more to be replaced at all.
        beside = max(case.limits.surge, min(old, default=0) + case.limits.size - 1)
        assert grown <= max(case.target, case.before) + beside
        if all(member.current for member in staying):
            assert grown <= case.target


@given(own.rollouts())
def test_never_drains_below_the_target(case: Rollout) -> None:
    step = planned(case)
    assert set(step.drain) <= {m.replica_id for m in running(case)}
    if step.drain:
        assert left(case, step) >= case.target


@given(own.rollouts(min_target=1))
def test_what_the_version_before_had_stays_until_the_new_one_runs_in_full(case: Rollout) -> None:
    step = planned(case)
    new = replicas(m for m in running(case) if m.current)
    if step.drain and replicas(running(case)) > new and new < case.target:
        assert left(case, step) >= case.before


@given(own.rollouts(min_target=1))
def test_old_ones_leave_first_and_not_too_many_at_a_time(case: Rollout) -> None:
    step = planned(case)
    by_id = {m.replica_id: m for m in case.members}
    old = {m.replica_id for m in running(case) if not m.current}
    already = replicas(
        m for m in case.members if not m.current and m.state is ReplicaState.DRAINING
    )
    if old:
        assert set(step.drain) <= old
        if already or len(step.drain) > 1:
            leaving = already + replicas(by_id[gone] for gone in step.drain)
            assert leaving <= max(case.limits.batch, already)
    coming = {ReplicaState.PENDING, ReplicaState.STARTING}
    unwanted = {m.replica_id for m in case.members if not m.current and m.state in coming}
    assert unwanted <= set(step.cancel)
    assert all(by_id[gone].state in coming for gone in step.cancel)


@given(own.rollouts(), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(case: Rollout, rng: random.Random) -> None:
    one = planned(case)
    rng.shuffle(case.members)
    other = planned(case)
    assert (one.start, set(one.cancel), set(one.drain)) == (
        other.start,
        set(other.cancel),
        set(other.drain),
    )


@given(own.rollouts())
def test_reaches_the_target_in_bounded_steps_and_then_rests(case: Rollout) -> None:
    """Everything that is started becomes ready, everything that drains goes."""
    fresh = 100
    kept = max(case.target, case.before)
    most = kept + most_beside(case.limits, (m.size for m in case.members), kept)
    most = max(most, replicas(case.members))
    for _ in range(200):
        last = list(case.members)
        step = planned(case)
        gone = {*step.cancel, *step.drain}
        case.members = [
            dataclasses.replace(m, state=ReplicaState.RUNNING)
            for m in case.members
            if m.replica_id not in gone and m.state is not ReplicaState.DRAINING
        ]
        for _ in range(step.start):
            fresh += 1
            case.members.append(
                Member(
                    ReplicaID(f"app/d#{fresh}"),
                    ReplicaState.PENDING,
                    True,
                    fresh,
                    case.limits.size,
                )
            )
        assert replicas(case.members) <= most
        if case.members == last:
            break
    assert replicas(case.members) == case.target
    assert all(m.current for m in case.members)


def test_there_is_always_a_surge_of_one() -> None:
    assert rollout.bounds(DeploymentConfig(), 1) == Bounds(1, 1)
    assert rollout.bounds(DeploymentConfig(), 10) == Bounds(2, 2)
    assert rollout.bounds(DeploymentConfig(max_surge_percent=25), 10) == Bounds(3, 2)
    assert rollout.bounds(DeploymentConfig(max_surge_percent=100), 4) == Bounds(4, 1)
    pairs = DeploymentConfig(gang_scheduling_config=GangSchedulingConfig(gang_size=2))
    assert rollout.bounds(pairs, 2) == Bounds(2, 2, 2)
    assert rollout.bounds(pairs, 20) == Bounds(4, 4, 2)


def test_a_gang_that_is_bigger_than_the_surge_is_replaced_when_there_are_enough_beside_it() -> None:
    old = [Member(ReplicaID(f"app/d#{n}"), ReplicaState.RUNNING, False, n, 5) for n in range(2)]
    new = [Member(ReplicaID(f"app/d#n{n}"), ReplicaState.RUNNING, True, n, 2) for n in range(3)]
    limits = Bounds(2, 2, 2)
    assert plan(old, 10, limits, 10).start == 3
    assert plan(old + new[:2], 10, limits, 10).start == 1
    step = plan(old + new, 10, limits, 10)
    assert (step.start, step.drain) == (0, ("app/d#1",))
