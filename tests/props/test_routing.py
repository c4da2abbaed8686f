"""Policies pick only what they are offered, and pick well."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from remora.core.routing.multiplex import ModelAffinity, narrow
from remora.core.routing.power_of_two import PowerOfTwo
from remora.core.routing.round_robin import RoundRobin
from remora.core.snapshot import AppRoute, DeploymentRoute, ReplicaRoute, Snapshot, diff, patch
from remora.types import LOCAL_NODE, DeploymentID, NodeID, ReplicaID
from remora.wire.messages import CallKind, Envelope


@dataclass(frozen=True)
class Candidate:
    name: int
    load: int
    model_ids: frozenset[str] = field(default=frozenset())
    limit: int = 100
    is_coming: bool = False
    node_id: NodeID = LOCAL_NODE
    availability_zone: str = ""

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(f"app/D#{self.name}")


def request(model_id: str = "", session_id: str = "", request_id: str = "r") -> Envelope:
    return Envelope(
        request_id,
        "app",
        "D",
        "__call__",
        CallKind.UNARY,
        multiplexed_model_id=model_id,
        session_id=session_id,
    )


def choose(offered: list[Candidate], rng: random.Random) -> Candidate | None:
    return PowerOfTwo().choose(request(), offered, rng)


models = st.frozensets(st.sampled_from("abc"))
#: Loads of which none is far above another.
candidates = st.lists(st.tuples(st.integers(0, 8), models), max_size=8).map(
    lambda some: [Candidate(name, load, held) for name, (load, held) in enumerate(some)]
)


@given(candidates, st.integers(), st.sampled_from(["", "a", "z"]))
def test_only_candidates_are_chosen(offered: list[Candidate], seed: int, model: str) -> None:
    for policy in (PowerOfTwo(), RoundRobin()):
        chosen = policy.choose(request(model), offered, random.Random(seed))
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
    visits = [policy.choose(request(), offered, random.Random(0)) for _ in range(count * rounds)]
    assert visits == offered * rounds


@given(st.lists(st.frozensets(st.integers(0, 7), min_size=1), max_size=20), st.booleans())
def test_round_robin_chooses_the_same_whether_it_knows_all_replicas_or_not(
    offers: list[frozenset[int]], sixth_leaves: bool
) -> None:
    knows, knows_not = RoundRobin(), RoundRobin()
    everybody = [Candidate(name, 0) for name in range(8)]
    knows.keep(everybody)
    for number, offer in enumerate(offers):
        if sixth_leaves and number == 5:
            everybody = [c for c in everybody if c.name != 6]
            knows.keep(everybody)
        offered = [c for c in everybody if c.name in offer]
        assert knows.choose(request(), offered, random.Random(0)) == knows_not.choose(
            request(), offered, random.Random(0)
        )


@given(st.permutations(range(6)), st.integers(0, 5))
def test_round_robin_skips_nobody_when_one_is_full_for_a_while(order: list[int], full: int) -> None:
    policy = RoundRobin()
    offered = [Candidate(name, 0) for name in order]
    first = [policy.choose(request(), offered, random.Random(0)) for _ in range(3)]
    rest = [c for c in offered if c.name != full]
    then = [policy.choose(request(), rest, random.Random(0)) for _ in range(3)]
    assert [c.name for c in first if c] == [0, 1, 2]
    assert {c.name for c in then if c} <= {3, 4, 5, 0} - {full}


# -- models ---------------------------------------------------------------------------------


@given(candidates, st.sampled_from("abz"))
def test_a_model_goes_to_a_replica_that_holds_it(offered: list[Candidate], model: str) -> None:
    left = narrow(model, offered)
    holders = [c for c in offered if model in c.model_ids]
    if holders:
        assert left == holders
    elif offered:
        fewest = min(len(c.model_ids) for c in offered)
        (home,) = left
        assert len(home.model_ids) == fewest
    else:
        assert not left


def test_a_model_whose_holders_are_far_busier_than_others_spreads() -> None:
    holder = Candidate(0, 9, frozenset("a"))
    idle = Candidate(1, 0, frozenset("b"))
    assert narrow("a", [holder, idle]) == [idle]
    assert narrow("a", [holder, Candidate(1, 1)]) == [holder]


@given(candidates.filter(bool), st.sampled_from("abz"), st.randoms())
def test_all_routers_send_a_missing_model_to_the_same_replica(
    offered: list[Candidate], model: str, rng: random.Random
) -> None:
    offered = [Candidate(c.name, c.load, c.model_ids - {model}) for c in offered]
    shuffled = rng.sample(offered, len(offered))
    assert narrow(model, offered) == narrow(model, shuffled)


def test_missing_models_are_spread_evenly_over_equal_replicas() -> None:
    offered = [Candidate(name, 0) for name in range(8)]
    homes = Counter(narrow(f"model-{number}", offered)[0].name for number in range(8000))
    assert all(850 < homes[name] < 1150 for name in range(8))


def test_a_busy_home_is_passed_by() -> None:
    busy = Candidate(narrow("a", [Candidate(name, 0) for name in range(4)])[0].name, 9)
    offered = [busy, *(Candidate(name, 0) for name in range(4) if name != busy.name)]
    assert narrow("a", offered)[0].name != busy.name


def test_a_request_waits_for_full_holders_unless_another_replica_is_far_less_busy() -> None:
    affinity = ModelAffinity()
    full = Candidate(0, 5, frozenset("a"))
    busy, idle = Candidate(1, 3), Candidate(2, 2)
    affinity.keep([full, busy, idle])
    assert affinity.narrow("a", [busy]) == ()
    assert affinity.narrow("a", [busy, idle]) != ()
    assert affinity.narrow("b", [busy]) == [busy]
    affinity.keep([busy, idle])  # it has left: nobody waits for it
    assert affinity.narrow("a", [busy]) == [busy]


@given(candidates.filter(bool), st.integers(), st.sampled_from("az"))
def test_a_model_that_is_being_loaded_is_not_loaded_a_second_time(
    offered: list[Candidate], seed: int, model: str
) -> None:
    rng = random.Random(seed)
    policy = PowerOfTwo()
    offered = [Candidate(c.name, c.load, c.model_ids - {model}) for c in offered]
    chosen = [policy.choose(request(model), offered, rng) for _ in range(5)]
    assert len(set(chosen)) == 1


def test_what_is_remembered_of_models_is_bounded() -> None:
    affinity = ModelAffinity()
    for number in range(3000):
        affinity.note(str(number), Candidate(0, 0))
    assert len(affinity._expected) == 1024


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
