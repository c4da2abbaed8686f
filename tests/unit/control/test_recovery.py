"""A controller that finds its state damaged, or gone: what runs goes on, and is known again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.core.saved_state import encode
from remora.types import DeploymentID

pytestmark = pytest.mark.virtual_time


def prefix(r: Rig) -> str | None:
    return r.snapshot.apps["default"].route_prefix


def lose_everything(store: dict[str, bytes]) -> None:
    """As when the file of the database was deleted or put aside."""
    store.clear()


def damage_everything(store: dict[str, bytes]) -> None:
    for key in store:
        store[key] = b"\xc1 rubbish"


def damage_header(store: dict[str, bytes]) -> None:
    store["state"] = b"\xc1 rubbish"


def damage_one(store: dict[str, bytes]) -> None:
    store["deployment/default#Back"] = b"\xc1 rubbish"


def damage_app(store: dict[str, bytes]) -> None:
    store["app/default"] = b""


@pytest.mark.parametrize(
    "damage", [lose_everything, damage_everything, damage_header, damage_one, damage_app]
)
async def test_applications_are_put_together_from_their_replicas(
    r: Rig, damage: Callable[[dict[str, bytes]], None], caplog: pytest.LogCaptureFixture
) -> None:
    spec = app(
        "default",
        deployment("Front", num_replicas=2, user_config={"k": 1}, code=b"front"),
        deployment("Back", code=b"back"),
        route_prefix="/shop",
    )
    await r.deploy(spec)
    await r.until_settled()
    before = {replica.pid for replica in r.replicas.serving}
    revision = r.controller.state.applications["default"].revision
    await r.stop()
    damage(r.engine.store)
    seen: list[tuple[int, int]] = []
    r.on_snapshot.append(
        lambda _snapshot: seen.append((r.num_routable("Front"), r.num_routable("Back")))
    )
    await r.start()
    await r.until_settled()
    await asyncio.sleep(1.0)
    # Routers noticed nothing, no process is another one.
    assert set(seen) == {(2, 1)}
    assert {replica.pid for replica in r.replicas.serving} == before
    assert r.snapshot.apps["default"].route_prefix == "/shop"
    assert r.snapshot.apps["default"].ingress == "Front"
    assert r.controller.state.applications["default"].revision == revision
    # The same again changes nothing, and what crashes is replaced by the same.
    await r.deploy(spec)
    await r.until_settled()
    assert {replica.pid for replica in r.replicas.serving} == before
    r.engine.crash(r.replicas.serving[0].process_id)
    await asyncio.sleep(1.0)
    await r.until_settled()
    codes = {each.spec.deployment: each.spec.code for each in r.replicas.serving if each.spec}
    assert codes == {"Front": b"front", "Back": b"back"}
    await r.stop()
    # What was put together is saved as any other state.
    content = encode(r.controller.state, with_event_id=False)
    await r.start()
    await r.until_settled()
    again = encode(r.controller.state, with_event_id=False)
    assert again.keys() == content.keys()
    if damage is not lose_everything:
        assert "It is kept below" in caplog.text
    if damage is not damage_header:
        assert "Put together from running replicas: default/" in caplog.text


async def test_code_that_was_found_again_goes_when_nobody_needs_it(r: Rig) -> None:
    await r.deploy(app())
    await r.until_settled()
    await r.stop()
    lose_everything(r.engine.store)
    await r.start()
    await r.until_settled()
    assert any(key.startswith("code/") for key in r.engine.store)
    await r.controller.code.sweep(set(), set())
    assert not any(key.startswith("code/") for key in r.engine.store)


async def test_numbers_of_releases_go_on_after_those_that_are_kept(r: Rig) -> None:
    for version in ("1", "2", "3"):
        await r.deploy(app("default", deployment(version=version)))
    await r.until_settled()
    await r.stop()
    damage_header(r.engine.store)
    await r.start()
    assert r.controller.state.release == 3
    await r.until_settled()
    await r.deploy(app("default", deployment(version="4")))
    assert [each.number for each in await r.controller.releases.read()] == [1, 2, 3, 4]


async def test_a_roll_out_goes_on_where_it_was_going(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=4)))
    await r.until_settled()
    old = {each.pid for each in r.replicas.serving}
    r.replicas.construct_s = lambda spec: 0.01 if len(r.replicas.serving) <= 4 else 3.0
    await r.deploy(app("default", deployment(version="2", num_replicas=4)))
    await r.until(lambda _now: bool({each.pid for each in r.replicas.serving} - old))
    new = {each.pid for each in r.replicas.serving} - old
    await r.stop()
    r.engine.store.clear()
    fewest: list[int] = []
    r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))
    await r.start()
    await r.until_settled()
    assert min(fewest) == 4
    assert {each.spec.code_version for each in r.replicas.serving if each.spec} == {"2"}
    assert new < {each.pid for each in r.replicas.serving}


async def test_a_replica_that_does_not_say_what_it_is_ends(
    r: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_settled()
    await r.stop()
    r.engine.store.clear()
    hung, well = r.replicas.serving
    hung.is_hung = True
    await r.start()
    await r.until_settled()
    assert hung.process_id not in r.engine.processes
    assert well.process_id in r.engine.processes
    assert r.num_routable() == 2
    assert "did not say what it is" in caplog.text


async def test_an_application_without_its_ingress_is_kept_for_callers_and_has_no_route(
    r: Rig,
) -> None:
    await r.deploy(app("default", deployment("Front"), deployment("Back"), ingress="Front"))
    await r.until_settled()
    await r.stop()
    r.engine.store.clear()
    for replica in r.replicas.serving:
        if "Front" in replica.process_id:
            r.engine.crash(replica.process_id)
    await r.start()
    await r.until(lambda _now: r.num_routable("Front") == 0)
    assert r.num_routable("Back") == 1
    assert prefix(r) is None
    assert DeploymentID("Front") not in r.snapshot.deployments
    await r.deploy(app("default", deployment("Front"), deployment("Back"), ingress="Front"))
    await r.until_settled()
    assert prefix(r) == "/"


async def test_an_instance_that_has_just_started_has_nothing_to_put_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    r = Rig()
    r.engine.controller_restarts = 0
    before = asyncio.get_running_loop().time()
    await r.start()
    await r.deploy(app())
    await r.until_running()
    assert asyncio.get_running_loop().time() - before < 0.1
    await r.stop()
    assert not caplog.text
