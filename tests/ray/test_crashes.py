"""A permanent process that dies at every start comes back later and later, and people are told."""

from __future__ import annotations

import time

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster as RayCluster
from tests.e2e.waiting import until_true

from remora.config import HTTPOptions
from remora.core.restart import MANY_CRASHES, MAX_DELAY_S
from remora.engine.ray import cluster as rays
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.crashes import HEALTHY_AFTER_S, Crashes, started_again
from remora.engine.ray.process import ProcessRequest
from remora.engine.ray.setup import InstanceSetup, read_crashes


@given(st.lists(st.floats(0.01, HEALTHY_AFTER_S - 0.1), min_size=1, max_size=60))
def test_pauses_grow_to_a_limit_while_it_dies_soon_after_each_start(lived_s: list[float]) -> None:
    now, crashes, pauses = 1000.0, None, []
    for lived in lived_s:
        crashes, pause_s = started_again(crashes, now)
        pauses.append(pause_s)
        now += pause_s + lived
    assert crashes is not None
    assert crashes.in_a_row == len(lived_s)
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] <= MAX_DELAY_S
    # In any hour that follows there are no more starts than the limit allows.
    assert len(pauses) < 12 or pauses[-1] == MAX_DELAY_S
    # One that has stayed begins anew, and nobody speaks of it any more.
    stayed = crashes.begins_at_unix_s + HEALTHY_AFTER_S + 0.001
    assert crashes.lately(stayed - 0.1) == len(lived_s)
    assert crashes.lately(stayed) == 0
    assert started_again(crashes, stayed) == (Crashes(1, stayed), 0.0)


async def test_what_dies_at_once_is_not_started_hot(cluster: RayCluster) -> None:
    ours = Cluster("crashes")
    InstanceSetup(
        home="/nowhere",
        node_id="elsewhere",
        token="secret",
        http=msgspec.to_builtins(HTTPOptions(host=None)),
    ).save(ours)
    request = ProcessRequest(
        process_id="proxy-1",
        kind="replica",
        entrypoint="tests.ray.apps:dies_at_once",
        title="dies",
        namespace="crashes",
        permanent=True,
    )
    begun = time.time()
    fleet.create(request, node_id=rays.this_node())
    try:
        await until_true(
            lambda: read_crashes(ours, time.time()).get("proxy-1", 0) > MANY_CRASHES,
            "its ends are counted",
            timeout_s=40,
        )
        # The pauses after the second and the third end are over, that after the fourth has begun.
        assert time.time() - begun > 0.3
    finally:
        ours.kill("proxy-1")
