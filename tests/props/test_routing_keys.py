"""Keys stay where they are, loads stay in bounds, and what is remembered is bounded."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.props.test_routing import Candidate, request

from remora.core.routing import locality
from remora.core.routing.consistent_hash import ConsistentHash, Ring
from remora.core.routing.most_room import MostRoom
from remora.core.routing.power_of_two import PowerOfTwo
from remora.core.routing.prefix_tree import BLOCK_CHARS, PrefixTree
from remora.core.routing.round_robin import RoundRobin
from remora.errors import ConfigError
from remora.types import LOCAL_NODE, NodeID, ReplicaID

names = st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True)
keys = st.text(min_size=1, max_size=20)
RNG = random.Random(0)


def ring(ids: list[int]) -> Ring:
    return Ring([ReplicaID(str(i)) for i in ids], 20)


# -- the ring ---------------------------------------------------------------------------------


@given(names, keys)
def test_a_ring_gives_every_replica_once(ids: list[int], key: str) -> None:
    assert sorted(ring(ids).order(key)) == sorted(str(i) for i in ids)


@given(names, keys, st.randoms())
def test_the_owner_of_a_key_does_not_depend_on_the_order_of_replicas(
    ids: list[int], key: str, rng: random.Random
) -> None:
    shuffled = ids.copy()
    rng.shuffle(shuffled)
    assert list(ring(ids).order(key)) == list(ring(shuffled).order(key))


@given(names.filter(lambda ids: len(ids) > 1), st.lists(keys, max_size=30))
def test_only_the_keys_of_a_replica_that_leaves_move(ids: list[int], some: list[str]) -> None:
    before, after = ring(ids), ring(ids[1:])
    for key in some:
        owner = next(before.order(key))
        if owner != str(ids[0]):
            assert next(after.order(key)) == owner
        else:
            # To whoever stood behind it.
            assert next(after.order(key)) == list(before.order(key))[1]


def test_keys_are_spread_over_the_replicas() -> None:
    full = Ring([ReplicaID(str(i)) for i in range(5)], 100)
    owners = Counter(next(full.order(f"session-{n}")) for n in range(5000))
    assert all(500 < owners[ReplicaID(str(i))] < 1700 for i in range(5)), owners


# -- the policy --------------------------------------------------------------------------------


def members(*loads: int) -> list[Candidate]:
    return [Candidate(name, load) for name, load in enumerate(loads)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), keys, st.integers(0, 5))
def test_a_session_stays_while_the_replicas_do(loads: list[int], key: str, seed: int) -> None:
    policy = ConsistentHash()
    everybody = members(*loads)
    policy.keep(everybody)
    chosen = policy.choose(request(session_id=key, request_id="1"), everybody, RNG)
    shuffled = everybody.copy()
    random.Random(seed).shuffle(shuffled)
    assert chosen is not None
    assert policy.choose(request(session_id=key, request_id="2"), shuffled, RNG) is chosen


@given(st.integers(1, 8), keys, st.integers(0, 4))
def test_a_full_replica_is_stood_in_for_by_as_many_as_allowed(
    count: int, key: str, fallbacks: int
) -> None:
    policy = ConsistentHash(num_fallback_replicas=fallbacks)
    everybody = members(*[0] * count)
    policy.keep(everybody)
    left = everybody
    chosen = []
    while (found := policy.choose(request(session_id=key), left, RNG)) is not None:
        chosen.append(found)
        left = [c for c in left if c is not found]
    assert len(chosen) == min(count, 1 + fallbacks)


@given(st.integers(1, 8), keys)
def test_a_replica_that_is_being_connected_is_waited_for(count: int, key: str) -> None:
    policy = ConsistentHash()
    everybody = members(*[0] * count)
    policy.keep(everybody)
    home = policy.choose(request(session_id=key), everybody, RNG)
    assert home is not None
    rest = [c for c in everybody if c is not home]
    policy.keep([*rest, replace(home, is_coming=True)])
    assert policy.choose(request(session_id=key), rest, RNG) is None


def test_without_a_session_requests_are_spread() -> None:
    policy = ConsistentHash()
    everybody = members(0, 0, 0)
    policy.keep(everybody)
    seen = {policy.choose(request(request_id=str(number)), everybody, RNG) for number in range(50)}
    assert seen == set(everybody)


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=8),
    keys,
    st.floats(1.0, 3.0, allow_nan=False),
)
def test_with_a_load_factor_nobody_gets_more_than_that_share(
    loads: list[int], key: str, factor: float
) -> None:
    policy = ConsistentHash(load_factor=factor)
    everybody = members(*loads)
    policy.keep(everybody)
    chosen = policy.choose(request(session_id=key), everybody, RNG)
    assert chosen is not None
    bound = math.ceil(factor * (sum(loads) + 1) / len(loads))
    assert chosen.load + 1 <= bound


@pytest.mark.parametrize(
    "kwargs",
    [{"num_virtual_nodes": 0}, {"num_fallback_replicas": -1}, {"load_factor": 0.5}],
)
def test_arguments_that_cannot_be_right_are_refused(kwargs: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(kwargs))):
        ConsistentHash(**kwargs)  # type: ignore[arg-type]


class Watched:
    """A candidate that counts how often a policy looks at its load or its id."""

    looks = 0

    def __init__(self, name: int, load: int) -> None:
        self._id = ReplicaID(f"app/D#{name:03}")
        self._load = load
        self.limit = 100
        self.is_coming = False
        self.model_ids: frozenset[str] = frozenset()
        self.node_id = LOCAL_NODE
        self.availability_zone = ""

    @property
    def replica_id(self) -> ReplicaID:
        Watched.looks += 1
        return self._id

    @property
    def load(self) -> int:
        Watched.looks += 1
        return self._load


@pytest.mark.parametrize(
    ("policy", "most"),
    [
        (RoundRobin(), 1),
        (ConsistentHash(), 0),
        (ConsistentHash(load_factor=1.5), 102),
        (MostRoom(), 100),
    ],
    ids=["round robin", "hash", "bounded hash", "most room"],
)
def test_a_choice_among_many_looks_at_each_once_at_most(policy: Any, most: int) -> None:
    everybody = [Watched(name, 1) for name in range(100)]
    policy.keep(everybody)
    for number in range(5):
        Watched.looks = 0
        assert policy.choose(request(request_id=str(number)), everybody, RNG) is not None
        assert Watched.looks <= most


def test_only_sessions_are_remembered() -> None:
    policy = ConsistentHash()
    everybody = members(0, 0, 0)
    policy.keep(everybody)
    for number in range(50):
        policy.choose(request(request_id=str(number)), everybody, RNG)
        policy.choose(request(request_id=str(number), session_id="s"), everybody, RNG)
    assert list(policy._orders) == ["s"]


# -- room, nearness ----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=8))
def test_most_room_takes_one_that_has_the_most(some: list[tuple[int, int]]) -> None:
    offered = [Candidate(n, load, limit=limit) for n, (load, limit) in enumerate(some)]
    chosen = MostRoom().choose(request(), offered, RNG)
    assert chosen is not None
    assert chosen.limit - chosen.load == max(limit - load for load, limit in some)
    assert MostRoom().choose(request(), [], RNG) is None


placed = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "z1", "z2"])), max_size=6)


@given(placed, st.sampled_from("ab"), st.sampled_from(["", "z1"]))
def test_ranks_by_nearness_hold_everybody_once(
    where: list[tuple[str, str]], node: str, zone: str
) -> None:
    offered = [
        Candidate(n, 0, node_id=NodeID(at), availability_zone=in_zone)
        for n, (at, in_zone) in enumerate(where)
    ]
    ranks = locality.rank(offered, node, zone)
    assert sorted((c for rank in ranks for c in rank), key=lambda c: c.name) == offered
    if any(at == node for at, _ in where):
        assert all(c.node_id == node for c in ranks[0])


def test_power_of_two_stays_on_the_node_while_somebody_there_has_room() -> None:
    here, there = Candidate(0, 5), Candidate(1, 0, node_id=NodeID("far"))
    policy = PowerOfTwo()
    policy.keep([here, there])
    assert policy.choose(request(), [there, here], RNG) is here
    assert policy.choose(request(), [there], RNG) is there


# -- beginnings of texts -------------------------------------------------------------------------

texts = st.text("ab", max_size=5 * BLOCK_CHARS)


@given(st.lists(st.tuples(texts, st.sampled_from("xyz")), max_size=10), texts)
def test_a_match_is_a_beginning_that_its_owner_has_seen(
    seen: list[tuple[str, str]], text: str
) -> None:
    tree = PrefixTree()
    tree.keep("xyz")
    for known, owner in seen:
        tree.add(known, owner)
    count, owners = tree.match(text)
    best = max((_common(known, text) for known, _ in seen), default=0)
    assert count == best
    for owner in owners:
        assert count == 0 or any(_common(t, text) == count for t, o in seen if o == owner)


def _common(one: str, other: str) -> int:
    blocks = 0
    while (
        len(one) >= (end := (blocks + 1) * BLOCK_CHARS)
        and len(other) >= end
        and one[:end] == other[:end]
    ):
        blocks += 1
    return blocks * BLOCK_CHARS


@given(st.lists(texts, max_size=20), st.integers(0, 3), st.integers(0, 3))
def test_what_is_kept_of_an_owner_is_bounded(some: list[str], more: int, target: int) -> None:
    tree = PrefixTree()
    tree.keep("x")
    for text in some:
        tree.add(text, "x")
    before = tree.chars("x")
    tree.evict((target + more) * BLOCK_CHARS, target * BLOCK_CHARS)
    if before > (target + more) * BLOCK_CHARS:
        assert tree.chars("x") == target * BLOCK_CHARS
    else:
        assert tree.chars("x") == before


def test_the_beginning_of_a_text_is_forgotten_last() -> None:
    tree = PrefixTree()
    tree.keep("x")
    text = "".join(str(n % 10) for n in range(4 * BLOCK_CHARS))
    tree.add(text, "x")
    tree.evict(0, 2 * BLOCK_CHARS)
    assert tree.match(text) == (2 * BLOCK_CHARS, ["x"])


def test_an_owner_that_is_gone_is_forgotten() -> None:
    tree = PrefixTree()
    tree.keep("xy")
    tree.add("a" * BLOCK_CHARS, "x")
    tree.keep("y")
    tree.add("a" * BLOCK_CHARS, "x")
    assert tree.match("a" * BLOCK_CHARS) == (0, ["y"])
    assert tree.emptiest() == ["y"]
