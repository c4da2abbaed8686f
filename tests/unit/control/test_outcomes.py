"""What became of each release, through the controller in virtual time."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.control.admin import Admin
from remora.core.submission import ApplicationRequest
from remora.errors import ReleaseError
from remora.wire.codec import pack, unpack
from remora.wire.control import Accepted, BuildResult, ConfigRequest, DeclaredApplication
from remora.wire.releases import Releases, RollbackRequest

pytestmark = pytest.mark.virtual_time


def describe(application: DeclaredApplication) -> BuildResult:
    version = json.loads(application.given)["version"]
    if version == "unimportable":
        return BuildResult(error="Traceback (most recent call last):\n  File …\nImportError: no m")
    rollback = "auto" if version.endswith("auto") else "manual"
    made = app(application.name, deployment(version=version, rollback=rollback), route_prefix=None)
    return BuildResult(application=made)


async def submit(r: Rig, version: str, *names: str) -> None:
    declared = tuple(
        DeclaredApplication(
            name=name, route_prefix=None, given=json.dumps({"version": version}).encode()
        )
        for name in names or ("a",)
    )
    await r.call("submit", pack(ConfigRequest(applications=declared, source="test")))


async def ask(admin: Admin, method: str, body: bytes = b"") -> bytes:
    made = admin.handlers[method](body)
    assert not hasattr(made, "__aiter__")
    return await made


async def outcomes(r: Rig) -> dict[int, tuple[str, str]]:
    told = unpack(await ask(r.admin, "releases"), Releases).releases
    return {each.number: (each.outcome, each.reason) for each in told}


async def roll_back(r: Rig, number: int = 0) -> int:
    return unpack(await ask(r.admin, "rollback", pack(RollbackRequest(number))), Accepted).release


def broken(r: Rig) -> None:
    r.replicas.describe = describe
    r.replicas.fail_construct = lambda spec: (
        "Traceback (most recent call last):\n  File …\nValueError: no weights"
        if spec.code_version.startswith("bad")
        else ""
    )


async def test_each_way_to_end_is_told_and_survives_the_controller(r: Rig) -> None:
    broken(r)
    await submit(r, "1")
    assert await outcomes(r) == {1: ("under way", "")}
    await r.until_running("a")
    await submit(r, "bad")
    await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED", "a")
    await submit(r, "unimportable")
    await r.until(lambda now: now is not None and "ImportError" in now.message, "a")
    await submit(r, "2")
    await submit(r, "3")
    await r.until_running("a")
    await submit(r, "bad auto")
    await r.until(lambda now: now is not None and bool(now.failure), "a")
    await r.until_settled("a")
    await r.delete("a")
    await r.until(lambda now: now is None, "a")
    expected = {
        1: ("deployed", ""),
        2: ("failed", "a/Model: ValueError: no weights"),
        3: ("failed", "a: ImportError: no m"),
        4: ("replaced", "by release 5, while under way"),
        5: ("deployed", ""),
        6: ("rolled back", "a: ValueError: no weights"),
        7: ("deleted", ""),
    }
    assert await outcomes(r) == expected
    await r.stop()
    await r.start()
    assert await outcomes(r) == expected


async def test_what_scales_or_is_lost_later_is_no_matter_of_the_release(r: Rig) -> None:
    broken(r)
    await submit(r, "1")
    await r.until_running("a")
    (replica,) = r.controller.state.replicas()
    r.engine.crash(replica[2].replica_id)
    await r.until(lambda now: now is not None and now.status != "RUNNING", "a")
    assert await outcomes(r) == {1: ("deployed", "")}


async def test_a_release_that_keeps_a_part_of_what_it_asked_for_is_replaced(r: Rig) -> None:
    broken(r)
    await submit(r, "1", "a", "b")
    await r.deploy(app("b", route_prefix=None))
    await r.until_running("a")
    await r.until_running("b")
    assert await outcomes(r) == {
        1: ("replaced", "by release 2, while under way"),
        2: ("deployed", ""),
    }


async def test_a_rollback_without_a_number_goes_to_what_worked(r: Rig) -> None:
    broken(r)
    await submit(r, "1")
    await r.until_settled("a")
    await submit(r, "bad")
    await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED", "a")
    await submit(r, "2")
    await r.until_settled("a")
    assert await roll_back(r) == 4
    await r.until_settled("a")
    found = unpack(await ask(r.admin, "releases"), Releases).releases[-1]
    assert (found.rollback_to, found.outcome) == (1, "deployed")
    with pytest.raises(ReleaseError, match="no config before release 1 that was in effect"):
        await roll_back(r)


async def test_the_code_of_a_rollback_stays_while_it_is_asked_for(r: Rig) -> None:
    """Releases come meanwhile, so that it is none of those any more whose code is kept."""

    await r.deploy(app("a", deployment(code=b"1"), route_prefix=None))
    await r.until_settled("a")
    first = r.controller.state.applications["a"].request
    assert isinstance(first, ApplicationRequest)
    (key,) = (each.code_key for each in first.deployments)
    await r.deploy(app("a", deployment(version="2", code=b"2"), route_prefix=None))
    await r.until_settled("a")
    await asyncio.sleep(60.0)
    asked = asyncio.ensure_future(roll_back(r, 1))
    held = r.controller.request

    async def slow(event: object) -> int:
        await r.controller.code.sweep(set(), set())
        return await held(event)  # type: ignore[arg-type]

    r.controller.request = slow  # type: ignore[assignment,method-assign]
    await asked
    await r.until_settled("a")
    assert await r.controller.code.get(key) == b"1"
