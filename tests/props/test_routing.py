"""Policies pick only what they are offered, and pick well."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from remora.core.routing.power_of_two import choose
from remora.core.routing.round_robin import RoundRobin
from remora.core.snapshot import AppRoute, DeploymentRoute, ReplicaRoute, Snapshot, diff, patch
from remora.types import DeploymentID, ReplicaID


@dataclass(frozen=True)
class Candidate:
    name: int
    load: int


candidates = st.lists(st.integers(0, 9), max_size=8).map(
    lambda loads: [Candidate(name, load) for name, load in enumerate(loads)]
)


@given(candidates, st.integers())
def test_only_candidates_are_chosen(offered: list[Candidate], seed: int) -> None:
    for policy in (choose, RoundRobin()):
        chosen = policy(offered, random.Random(seed))
        assert chosen in offered if offered else chosen is None


@given(candidates.filter(lambda some: len(some) > 1), st.integers())
def test_power_of_two_never_takes_the_one_that_is_busier_than_all(
    offered: list[Candidate], seed: int
) -> None:
    busiest = max(offered, key=lambda c: c.load)
    chosen = choose(offered, random.Random(seed))
    if sum(c.load == busiest.load for c in offered) == 1:
        assert chosen is not busiest


@given(st.integers(), candidates)
def test_the_same_chance_gives_the_same_choice(seed: int, offered: list[Candidate]) -> None:
    assert choose(offered, random.Random(seed)) is choose(offered, random.Random(seed))


def test_equal_candidates_are_chosen_equally() -> None:
    offered = [Candidate(name, 3) for name in range(5)]
    rng = random.Random(3)
    seen = Counter(found.name for _ in range(5000) if (found := choose(offered, rng)))
    assert all(850 < seen[name] < 1150 for name in range(5))


@given(st.integers(1, 8), st.integers(1, 4))
def test_round_robin_visits_all_before_it_visits_one_again(count: int, rounds: int) -> None:
    offered = [Candidate(name, 0) for name in range(count)]
    policy = RoundRobin()
    visits = [policy(offered, random.Random(0)) for _ in range(count * rounds)]
    assert visits == offered * rounds


names = st.sampled_from("abcd")
routes = st.builds(
    DeploymentRoute,
    st.lists(names, max_size=3, unique=True).map(
        lambda some: tuple(ReplicaRoute(ReplicaID(n), f"unix:/{n}") for n in some)
    ),
    st.integers(1, 9),
)
snapshots = st.builds(
    Snapshot,
    st.integers(0, 99),
    st.dictionaries(names, st.builds(AppRoute, names, st.none() | names, names), max_size=3),
    st.dictionaries(st.builds(DeploymentID, names, names), routes, max_size=3),
)


@given(snapshots, snapshots, snapshots)
def test_a_patched_snapshot_is_the_new_one(old: Snapshot, new: Snapshot, other: Snapshot) -> None:
    before = (dict(old.apps), dict(old.deployments))
    assert patch(old, diff(old, new)) == new
    assert patch(other, diff(None, new)) == new
    assert (old.apps, old.deployments) == before
    assert diff(old, old).apps == {}
