"""Deployment actors: before the replicas of their version, until the last of them is gone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.wire.control import ApplicationSpec, DeploymentSpec

pytestmark = pytest.mark.virtual_time


def owned(version: str = "1", actor: str = "", **options: Any) -> ApplicationSpec:
    """An application whose deployment has an actor; `actor` tells the actor's own versions."""
    name = f"Model::queue::{actor or version}"
    model = deployment(version=version, actors={"queue": name}, **options)
    return app("default", model, holder(name, version))


def holder(name: str, version: str, **options: Any) -> DeploymentSpec:
    return deployment(name, version, actor_of="Model", actor_name="queue", **options)


def living(r: Rig) -> set[str]:
    """Deployments that have a process."""
    return {process_id.partition("/")[2].partition("#")[0] for process_id in r.engine.processes}


async def test_an_actor_is_there_before_replicas_start(r: Rig) -> None:
    r.replicas.construct_s = lambda spec: 30.0 if "queue" in spec.deployment else 0.01
    await r.deploy(owned(num_replicas=2))
    text = "Its replicas wait for the deployment actor 'queue'."
    await r.until(lambda now: now is not None and text in now.message and len(living(r)) == 1)
    assert living(r) == {"Model::queue::1"}
    await r.until_running()
    assert r.num_routable() == 2
    assert r.num_routable("Model::queue::1") == 1


async def test_an_actor_that_dies_is_started_again_and_replicas_stay(r: Rig) -> None:
    await r.deploy(owned(num_replicas=2))
    await r.until_settled()
    before = {each.process_id for each in r.replicas.serving}
    (actor,) = (each for each in before if "queue" in each)
    r.engine.crash(actor)
    await r.until(lambda _: r.num_routable("Model::queue::1") == 0)
    await r.until_settled()
    after = {each.process_id for each in r.replicas.serving}
    assert len(before & after) == 2
    assert len(after - before) == 1


async def test_a_new_version_has_an_actor_of_its_own_and_the_old_one_stays_for_old_replicas(
    r: Rig,
) -> None:
    await r.deploy(owned(num_replicas=2))
    await r.until_settled()
    for replica in r.replicas.serving:
        # What it works on takes a while.
        replica.work_s = 0.0 if "queue" in replica.process_id else 5.0
    seen: list[tuple[bool, bool]] = []

    def look(_: object) -> None:
        old = any(
            each.spec is not None and each.spec.code_version == "1"
            for process_id, each in r.replicas.by_id.items()
            if process_id in r.engine.processes and "queue" not in process_id
        )
        seen.append((old, "Model::queue::1" in living(r)))

    r.on_snapshot.append(look)
    await r.deploy(owned("2", num_replicas=2))
    await r.until_settled()
    look(None)
    assert all(has_actor for has_old, has_actor in seen if has_old)
    assert "Model::queue::1" in living(r), "the old version may still come back"
    await r.until(lambda _: "Model::queue::1" not in living(r))
    assert living(r) == {"Model", "Model::queue::2"}


async def test_an_actor_that_cannot_start_fails_the_deploy_and_the_old_version_serves(
    r: Rig,
) -> None:
    await r.deploy(owned(num_replicas=2))
    await r.until_settled()
    r.replicas.fail_construct = lambda spec: (
        "ValueError: no queue" if spec.deployment == "Model::queue::2" else ""
    )
    await r.deploy(owned("2", num_replicas=2))
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    assert status is not None
    model = status.deployments["Model"]
    assert (model.status, model.status_trigger) == (
        "DEPLOY_FAILED",
        "DEPLOYMENT_ACTOR_FAILED",
    )
    assert "Its deployment actor 'queue' could not be started" in model.message
    assert "no queue" in model.message
    assert r.num_routable() == 2
    assert r.num_routable("Model::queue::1") == 1
    await r.deploy(owned(num_replicas=2))
    await r.until_settled()
    assert living(r) == {"Model", "Model::queue::1"}


async def test_a_replacement_that_waits_for_an_actor_makes_its_deployment_unhealthy(r: Rig) -> None:
    await r.deploy(owned(num_replicas=2))
    await r.until_settled()
    r.replicas.fail_construct = lambda spec: (
        "ValueError: no queue" if spec.deployment == "Model::queue::1" else ""
    )
    actor, replica, _ = sorted(
        (each.process_id for each in r.replicas.serving),
        key=lambda name: "queue" not in name,
    )
    r.engine.crash(actor)
    r.engine.crash(replica)
    status = await r.until(
        lambda now: now is not None and now.deployments["Model"].status == "UNHEALTHY"
    )
    assert status is not None
    await r.until(
        lambda now: (
            now is not None
            and "wait for the deployment actor 'queue'" in now.deployments["Model"].message
        )
    )
    r.replicas.fail_construct = lambda _: ""
    await r.until_settled()
    assert r.num_routable() == 2


async def test_an_actor_ends_after_the_last_replica(r: Rig) -> None:
    await r.deploy(owned(num_replicas=2))
    await r.until_settled()
    for replica in r.replicas.serving:
        replica.work_s = 0.0 if "queue" in replica.process_id else 3.0
    ended: list[str] = []
    r.engine.on_exit.append(ended.append)
    await r.delete("default")
    await r.until(lambda now: now is None)
    assert len(ended) == 3
    assert "queue" in ended[-1]


async def test_an_actor_goes_with_a_deployment_that_is_dropped(r: Rig) -> None:
    front = deployment("Front")
    model, actor = owned().deployments
    await r.deploy(app("default", front, model, actor))
    await r.until_settled()
    await r.deploy(app("default", front))
    await r.until(lambda _: living(r) == {"Front"})


async def test_what_waits_for_an_actor_waits_on_after_a_controller_restart(r: Rig) -> None:
    r.replicas.construct_s = lambda spec: 30.0 if "queue" in spec.deployment else 0.01
    await r.deploy(owned(num_replicas=2))
    await r.until(lambda now: now is not None and "wait for the deployment" in now.message)
    await r.stop()
    await r.start()
    await r.until_running()
    assert r.num_routable() == 2
