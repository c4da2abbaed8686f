from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from tests.props import strategies as own

from remora.config import DeploymentConfig
from remora.core import rollout
from remora.core.replica_state import ReplicaState
from remora.core.rollout import Bounds, Member, plan
from remora.types import ReplicaID

NOT_LEAVING = {ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.RUNNING}


#: How many replicas there should be, and how many of the version before; 0: there is none.
targets = st.integers(0, 8)


@given(own.members(), targets, own.bounds, targets)
def test_never_grows_above_surge_and_target_of_both_versions(
    members: list[Member], target: int, limits: Bounds, before: int
) -> None:
    step = plan(members, target, limits, before)
    staying = sum(member.state in NOT_LEAVING for member in members) - len(step.cancel)
    assert step.start >= 0
    if step.start:
        assert staying + step.start <= max(target, before) + limits.surge
        if all(member.current for member in members if member.state in NOT_LEAVING):
            assert staying + step.start <= target


@given(own.members(), targets, own.bounds, targets)
def test_never_drains_below_the_target(
    members: list[Member], target: int, limits: Bounds, before: int
) -> None:
    step = plan(members, target, limits, before)
    running = {m.replica_id for m in members if m.state is ReplicaState.RUNNING}
    assert set(step.drain) <= running
    if step.drain:
        assert len(running) - len(step.drain) >= target


@given(own.members(), st.integers(1, 8), own.bounds, targets)
def test_what_the_version_before_had_stays_until_the_new_one_runs_in_full(
    members: list[Member], target: int, limits: Bounds, before: int
) -> None:
    step = plan(members, target, limits, before)
    running = [m for m in members if m.state is ReplicaState.RUNNING]
    new = sum(m.current for m in running)
    if step.drain and len(running) > new and new < target:
        assert len(running) - len(step.drain) >= before


@given(own.members(), st.integers(1, 8), own.bounds, targets)
def test_old_ones_leave_first_and_not_too_many_at_a_time(
    members: list[Member], target: int, limits: Bounds, before: int
) -> None:
    step = plan(members, target, limits, before)
    old = {m.replica_id for m in members if not m.current and m.state is ReplicaState.RUNNING}
    leaving = sum(not m.current and m.state is ReplicaState.DRAINING for m in members)
    if old:
        assert set(step.drain) <= old
        assert leaving + len(step.drain) <= max(limits.batch, leaving)
    coming = {ReplicaState.PENDING, ReplicaState.STARTING}
    unwanted = {m.replica_id for m in members if not m.current and m.state in coming}
    assert unwanted <= set(step.cancel)
    by_id = {m.replica_id: m for m in members}
    assert all(by_id[gone].state in coming for gone in step.cancel)


@given(own.members(), targets, own.bounds, targets, st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(
    members: list[Member], target: int, limits: Bounds, before: int, rng: random.Random
) -> None:
    shuffled = list(members)
    rng.shuffle(shuffled)
    one, other = (plan(each, target, limits, before) for each in (members, shuffled))
    assert (one.start, set(one.cancel), set(one.drain)) == (
        other.start,
        set(other.cancel),
        set(other.drain),
    )


@given(own.members(), targets, own.bounds, targets)
def test_reaches_the_target_in_bounded_steps_and_then_rests(
    members: list[Member], target: int, limits: Bounds, before: int
) -> None:
    """Everything that is started becomes ready, everything that drains goes."""
    fresh = 100
    for _ in range(60):
        last = list(members)
        step = plan(members, target, limits, before)
        gone = {*step.cancel, *step.drain}
        members = [
            Member(m.replica_id, ReplicaState.RUNNING, m.current, m.rank)
            for m in members
            if m.replica_id not in gone and m.state is not ReplicaState.DRAINING
        ]
        for _ in range(step.start):
            fresh += 1
            members.append(Member(ReplicaID(f"app/d#{fresh}"), ReplicaState.PENDING, True, fresh))
        if members == last:
            break
    assert len(members) == target
    assert all(m.current for m in members)


def test_there_is_always_a_surge_of_one() -> None:
    assert rollout.bounds(DeploymentConfig(), 1) == Bounds(1, 1)
    assert rollout.bounds(DeploymentConfig(), 10) == Bounds(2, 2)
    assert rollout.bounds(DeploymentConfig(max_surge_percent=25), 10) == Bounds(3, 2)
    assert rollout.bounds(DeploymentConfig(max_surge_percent=100), 4) == Bounds(4, 1)
