"""What replicas hold: refused, awaited, shared out, given back; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.control.rig import Rig, app, deployment, rig

from remora.config import AutoscalingConfig, GangSchedulingConfig
from remora.core import events as ev
from remora.core.replica_state import Replica, ReplicaState
from remora.engine.base import Missing, Node, ProcessPreparing
from remora.errors import PlacementError
from remora.testing import FakeEngine
from remora.types import LOCAL_NODE, NodeID
from remora.wire.control import ReplicaSpec

pytestmark = pytest.mark.virtual_time


def machine(*, fixed: bool = True, **resources: float) -> FakeEngine:
    engine = FakeEngine([Node(LOCAL_NODE, resources, labels={"zone": "eu"})])
    engine.has_fixed_nodes = fixed
    return engine


def living(r: Rig, name: str = "Model", app_name: str = "default") -> list[Replica]:
    deployments = r.controller.state.applications[app_name].deployments
    return sorted(deployments[name].replicas.values(), key=lambda replica: replica.rank)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"resources": {"CPU": 9.0}}, "default/Model with 1 replica.*CPU: 9 needed, 8 free of 8"),
        (
            {"num_replicas": 3, "resources": {"GPU": 1.0}},
            r"3 replica.*GPU: 1 needed, 0 free of 2 \(asked for by default/Model 2\)",
        ),
        ({"label_selector": {"zone": "us"}}, "zone=us.*there are zone=eu"),
        ({"num_replicas": 2, "max_replicas_per_node": 1}, "max_replicas_per_node=1"),
        (
            {
                "placement_group_bundles": ({"CPU": 1.0}, {"CPU": 1.0}),
                "placement_group_strategy": "STRICT_SPREAD",
            },
            "a node for each of 2 bundles",
        ),
        (
            {
                "num_replicas": 4,
                "resources": {"GPU": 1.0},
                "gang_scheduling_config": GangSchedulingConfig(gang_size=4),
            },
            "a gang of 4 starts together or not at all, and 2 of them find room",
        ),
    ],
)
async def test_what_could_never_run_is_refused_with_the_numbers(
    options: dict[str, Any], reason: str
) -> None:
    async with rig(machine(CPU=8.0, GPU=2.0)) as r:
        with pytest.raises(PlacementError, match=reason):
            await r.deploy(app("default", deployment(**options)))
        assert await r.status() is None


async def test_applications_of_one_deploy_must_fit_together() -> None:
    async with rig(machine(CPU=4.0)) as r:
        two = [
            app(name, deployment(resources={"CPU": 3.0}), route_prefix=f"/{name}")
            for name in ("one", "two")
        ]
        with pytest.raises(PlacementError, match=r"3 needed, 1 free of 4 \(asked for by one/Model"):
            await r.deploy(*two)


@pytest.mark.parametrize(
    ("options", "is_pinned"),
    [
        ({"resources": {"CPU": 1.0}}, False),
        ({"label_selector": {"zone": "eu"}}, True),
        ({"max_replicas_per_node": 1}, True),
        ({"gang_scheduling_config": GangSchedulingConfig(gang_size=1)}, True),
    ],
)
async def test_a_place_that_was_asked_for_is_kept_to(
    options: dict[str, Any], *, is_pinned: bool
) -> None:
    async with rig(machine(CPU=2.0)) as r:
        await r.deploy(app("default", deployment(**options)))
        await r.until(lambda now: now is not None and now.status == "RUNNING")
        assert [each.spec.pinned for each in r.engine.processes.values()] == [is_pinned]


async def test_where_nodes_may_join_nothing_is_refused() -> None:
    async with rig(machine(fixed=False, CPU=1.0)) as r:
        await r.deploy(app("default", deployment(resources={"CPU": 2.0})))
        await r.until(lambda now: now is not None and "CPU: 2 needed" in now.message)
        r.engine.join_node(Node(NodeID("big"), {"CPU": 2.0}))
        await r.until_running()


async def test_an_autoscaled_deployment_is_refused_only_if_its_fewest_do_not_fit() -> None:
    async with rig(machine(CPU=2.0)) as r:
        scaling = AutoscalingConfig(min_replicas=1, max_replicas=50)
        one = deployment(resources={"CPU": 1.0}, autoscaling_config=scaling)
        await r.deploy(app("default", one))
        await r.until_running()


async def test_what_finds_no_room_now_waits_and_says_who_holds_it() -> None:
    async with rig(machine(GPU=2.0)) as r:
        first = deployment(num_replicas=2, resources={"GPU": 1.0})
        await r.deploy(app("first", first, route_prefix="/first"))
        await r.until_running("first")
        await r.deploy(app("default", deployment(resources={"GPU": 0.5})))
        expected = "GPU: 0.5 needed, 0 free of 2 (held by first/Model 2)"
        await r.until(lambda now: now is not None and expected in now.message)
        await r.delete("first")
        await r.until_running()


async def test_equal_shares_of_a_gpu_are_put_together_and_whole_ones_are_exclusive() -> None:
    async with rig(machine(GPU=2.0)) as r:
        shares = deployment("Share", num_replicas=2, resources={"GPU": 0.5})
        whole = deployment("Whole", resources={"GPU": 1.0})
        await r.deploy(app("default", shares, whole))
        await r.until_running()
        held = [replica.gpus for replica in living(r, "Share")]
        assert held[0] == held[1]
        assert {*held, living(r, "Whole")[0].gpus} == {(0,), (1,)}


async def test_an_update_on_a_full_machine_takes_the_place_of_what_it_replaces() -> None:
    async with rig(machine(GPU=1.0)) as r:
        await r.deploy(app("default", deployment(resources={"GPU": 1.0})))
        await r.until_running()
        (old,) = living(r)
        await r.deploy(app("default", deployment(version="2", resources={"GPU": 1.0})))
        await r.until_settled()
        (new,) = living(r)
        assert new.replica_id != old.replica_id
        told = [moment.detail for gone in r.controller.state.stopped for moment in gone.history]
        assert "makes room: there is none for old and new together" in told


async def test_a_failing_update_on_a_full_machine_gives_the_place_back() -> None:
    async with rig(machine(GPU=1.0)) as r:
        await r.deploy(app("default", deployment(resources={"GPU": 1.0})))
        await r.until_running()
        r.replicas.fail_construct = lambda spec: "boom" if spec.code_version == "2" else ""
        bad = deployment(version="2", resources={"GPU": 1.0}, max_constructor_retry_count=1)
        await r.deploy(app("default", bad))
        await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
        await r.until(lambda _: r.num_routable() == 1)
        assert r.replicas.serving[0].spec is not None
        assert r.replicas.serving[0].spec.code_version == "1"


async def test_bundles_are_reserved_together_and_given_back_together() -> None:
    async with rig(machine(CPU=4.0, GPU=2.0)) as r:
        bundles = ({"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0})
        grouped = deployment(resources={"GPU": 1.0}, placement_group_bundles=bundles)
        await r.deploy(app("default", grouped))
        await r.until_running()
        (process,) = r.engine.processes.values()
        assert [hold.gpus for hold in process.spec.holds] == [(0,), (1,)]
        await r.deploy(app("other", deployment(resources={"GPU": 1.0}), route_prefix="/other"))
        await r.until(
            lambda now: now is not None and "held by default/Model 2" in now.message, "other"
        )
        await r.delete("default")
        await r.until_running("other")


def gang_of(size: int, count: int, **options: Any) -> Any:
    gang = GangSchedulingConfig(gang_size=size)
    return deployment(num_replicas=count, gang_scheduling_config=gang, **options)


def specs(r: Rig) -> list[ReplicaSpec]:
    return [replica.spec for replica in r.replicas.serving if replica.spec is not None]


async def test_members_of_a_gang_know_each_other() -> None:
    async with rig(machine(CPU=4.0)) as r:
        await r.deploy(app("default", gang_of(2, 4)))
        await r.until_running()
        gangs = {spec.gang.gang_id: spec.gang.members for spec in specs(r) if spec.gang}
        assert len(gangs) == 2
        for spec in specs(r):
            assert spec.gang is not None
            assert spec.gang.members[spec.gang.rank] == spec.replica_id
        assert sorted(spec.ranks[0] for spec in specs(r)) == [0, 1, 2, 3]


async def test_a_gang_that_loses_a_member_is_replaced_and_others_stay() -> None:
    async with rig(machine(CPU=4.0)) as r:
        await r.deploy(app("default", gang_of(2, 4)))
        await r.until_running()
        broken, whole = {each.gang.members for each in living(r) if each.gang}
        r.engine.crash(broken[0])
        await r.until(lambda _: broken[1] not in {each.replica_id for each in living(r)})
        await r.until_settled()
        names = {each.replica_id for each in living(r)}
        assert names > set(whole)
        assert not names & set(broken)
        assert sorted(each.rank for each in living(r)) == [0, 1, 2, 3]


async def test_a_gang_waits_for_room_as_a_whole() -> None:
    async with rig(machine(CPU=4.0)) as r:
        await r.deploy(app("other", deployment(resources={"CPU": 1.0}), route_prefix="/other"))
        await r.until_running("other")
        await r.deploy(app("default", gang_of(4, 4, resources={"CPU": 1.0})))
        await r.until(lambda now: now is not None and "a gang of 4" in now.message)
        assert len(r.engine.processes) == 1
        await r.delete("other")
        await r.until_running()


async def test_an_update_replaces_gang_by_gang() -> None:
    async with rig(machine(CPU=8.0)) as r:
        await r.deploy(app("default", gang_of(2, 4)))
        await r.until_running()
        fewest = [4]
        r.on_snapshot.append(lambda _: fewest.append(r.num_routable()))
        await r.deploy(app("default", gang_of(2, 4, version="2")))
        await r.until_settled()
        assert min(fewest) == 4
        assert {spec.code_version for spec in specs(r)} == {"2"}
        assert sorted(each.rank for each in living(r)) == [0, 1, 2, 3]


async def test_ranks_are_dense_again_after_a_roll_out_and_replicas_hear_of_it() -> None:
    async with rig(machine(CPU=8.0)) as r:
        await r.deploy(app("default", deployment(num_replicas=3, user_config={"a": 1})))
        await r.until_settled()
        await r.deploy(
            app("default", deployment(version="2", num_replicas=3, user_config={"a": 1}))
        )
        await r.until_settled()
        await r.until(lambda _: all(each.ranks_told for each in living(r)))
        assert [each.rank for each in living(r)] == [0, 1, 2]
        told = {each.process_id: each.ranks for each in r.replicas.serving}
        assert told == {
            each.replica_id: (each.rank, each.node_rank, each.local_rank) for each in living(r)
        }


async def test_the_successor_of_a_crashed_replica_has_its_rank_and_nobody_elses_changes() -> None:
    async with rig(machine(CPU=8.0)) as r:
        await r.deploy(app("default", deployment(num_replicas=3)))
        await r.until_settled()
        before = {each.rank: each.replica_id for each in living(r)}
        r.engine.crash(before[1])
        await r.until(lambda _: before[1] not in {each.replica_id for each in living(r)})
        await r.until_settled()
        after = {each.rank: each.replica_id for each in living(r)}
        assert (after[0], after[2]) == (before[0], before[2])


async def test_what_the_engine_prepares_may_take_long_and_is_told() -> None:
    async with rig(machine(CPU=1.0)) as r:
        r.engine.start_delay_s = 300.0
        await r.deploy(app("default", deployment()))
        await r.until(lambda now: now is not None and now.status == "DEPLOYING")
        (only,) = living(r)
        r.engine.tell(ProcessPreparing(only.replica_id, "installs 3 packages"))
        await r.until(lambda now: now is not None and "installs 3 packages" in now.message)
        await r.until_running(timeout_s=400.0)
        assert living(r)[0].replica_id == only.replica_id
        assert living(r)[0].state is ReplicaState.RUNNING


async def test_replicas_know_how_many_there_are_to_be() -> None:
    async with rig(machine(CPU=8.0)) as r:
        scaling = AutoscalingConfig(min_replicas=3, max_replicas=5)
        await r.deploy(app("default", deployment(autoscaling_config=scaling)))
        await r.until_settled()
        assert [spec.world_size for spec in specs(r)] == [3, 3, 3]


async def test_a_gang_that_lost_a_member_while_no_controller_ran_is_replaced() -> None:
    async with rig(machine(CPU=4.0)) as r:
        await r.deploy(app("default", gang_of(2, 4)))
        await r.until_settled()
        broken, whole = {each.gang.members for each in living(r) if each.gang}
        await r.stop()
        r.engine.crash(broken[1])
        await r.start()
        await r.until(lambda _: not set(broken) & {each.replica_id for each in living(r)})
        await r.until_settled()
        assert {each.replica_id for each in living(r)} > set(whole)
        assert len(living(r)) == 4


async def test_a_deploy_that_comes_before_the_engine_has_said_anything_is_weighed_too() -> None:
    made = Rig(machine(CPU=1.0))
    starting = asyncio.create_task(made.start())
    try:
        while not hasattr(made, "admin"):
            await asyncio.sleep(0)
        config = deployment(resources={"CPU": 2.0}).config
        one = ev.DeploymentRequest(name="d", code_key="k", code_version="1", config=config)
        wanted = ev.ApplicationRequest(name="a", route_prefix="/", ingress="d", deployments=(one,))
        with pytest.raises(PlacementError, match="CPU: 2 needed"):
            await made.controller.request(ev.DeployRequested(applications=(wanted,)))
        await starting
    finally:
        await made.stop()


async def test_an_engine_without_nodes_holds_up_nobody() -> None:
    engine = machine(CPU=1.0)
    engine.nodes.clear()
    async with rig(engine) as r:
        await r.deploy(app("default", deployment()))
        await r.until(lambda now: now is not None and "offers no node" in now.message)
        r.engine.join_node(Node(LOCAL_NODE, {}))
        await r.until_running()


async def test_the_engine_hears_what_finds_no_room() -> None:
    engine = machine(fixed=False, CPU=1.0)
    heard: list[tuple[Missing, ...]] = []
    engine.seek = heard.append  # type: ignore[method-assign, assignment]
    async with rig(engine) as r:
        bundles = ({"CPU": 1.0}, {"GPU": 1.0})
        selector = {"zone": "eu"}
        await r.deploy(
            app(
                "default",
                deployment(
                    num_replicas=2, placement_group_bundles=bundles, label_selector=selector
                ),
            )
        )
        await r.until(lambda now: now is not None and "find no place" in now.message)
        assert list(heard[-1]) == [Missing(bundles, (selector, selector))] * 2
        engine.join_node(Node(NodeID("big"), {"CPU": 1.0, "GPU": 1.0}, labels=selector))
        await r.until(lambda now: now is not None and "1 replica(s) find" in now.message)
        assert list(heard[-1]) == [Missing(bundles, (selector, selector))]
        # What a limit for each node keeps waiting lacks nothing.
        await r.deploy(app("default", deployment(num_replicas=9, max_replicas_per_node=1)))
        await r.until(lambda now: now is not None and "is reached" in now.message)
        assert not heard[-1]
        gang = GangSchedulingConfig(gang_size=2, gang_placement_strategy="SPREAD")
        tokens = deployment(num_replicas=4, resources={"token": 1.0}, gang_scheduling_config=gang)
        await r.deploy(app("default", tokens))
        await r.until(lambda now: now is not None and "4 replica(s) find" in now.message)
        assert list(heard[-1]) == [Missing(({"token": 1.0},) * 2, ({}, {}), "SPREAD")] * 2
