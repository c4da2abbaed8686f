"""A model that is loaded once for all replicas of a machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import preload_model
from tests.e2e.instances import Instance
from tests.e2e.load import get
from tests.e2e.waiting import until_true

import remora as serve
from remora.build.graph import build
from remora.control.client import ControlClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

MIB = 1024 * 1024


def private_bytes(pid: int) -> int:
    """Memory that is a process's alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


@serve.deployment(preload=[preload_model.load])
class Shares:
    def __init__(self) -> None:
        self.model = serve.preloaded(preload_model.load)

    def __call__(self) -> dict[str, Any]:
        # All of it is read, which copies nothing.
        return {
            "sum": sum(self.model.weights[:: 64 * 1024]),
            "pid": os.getpid(),
            "loaded_by": self.model.loaded_by,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "parent": os.getppid(),
        }


@serve.deployment(preload=[preload_model.hang_once])
class Hangs:
    def __call__(self) -> str:
        return "well"


@pytest.mark.local_only("replicas share memory because they are forked")
async def test_replicas_share_the_memory_of_what_was_loaded_once(shared: Instance) -> None:
    async with shared.running(Shares.bind(), "shares") as url:
        first = (await get(url)).json
        assert first["loaded_by"] != first["pid"]
        assert first["parent"] == shared.pid
        assert first["threads"] == os.environ.get("OMP_NUM_THREADS")
        began = time.monotonic()
        await shared.run(Shares.options(num_replicas=2).bind(), "shares")
        took_s = time.monotonic() - began
        pids = await shared.pids("shares")
        (second,) = pids - {first["pid"]}
        for _ in range(50):
            if (await get(url)).json["pid"] == second:
                break
        assert private_bytes(second) < 0.1 * preload_model.SIZE + 20 * MIB
        # Loading takes longer, and the limit leaves room for a machine under load.
        assert took_s < 5.0
        # One that dies is replaced without loading again.
        os.kill(second, 9)
        (third,) = await shared.replicas("shares", 2, {second}) - {first["pid"]}
        answers = [(await get(url)).json for _ in range(50)]
        assert {answer["pid"] for answer in answers} == {first["pid"], third}
        assert {answer["loaded_by"] for answer in answers} == {first["loaded_by"]}


@pytest.mark.local_only("a replica loads for itself, and only what it asks for")
async def test_what_cannot_be_loaded_fails_the_deploy_and_says_why(shared: Instance) -> None:
    bad = Shares.options(preload=[preload_model.fail], max_constructor_retry_count=1)
    async with shared.deleting("fails"):
        app = await shared.deploy(bad.bind(), "fails", route=None)
        assert app.status == "DEPLOY_FAILED"
        assert (
            "preload of tests.e2e.preload_model:fail failed: OSError: no such model" in app.message
        )


@pytest.mark.local_only("a process of its own loads")
async def test_what_dies_while_it_loads_fails_the_deploy(shared: Instance) -> None:
    bad = Shares.options(preload=[preload_model.die], max_constructor_retry_count=1)
    async with shared.deleting("dies"):
        app = await shared.deploy(bad.bind(), "dies", route=None)
        assert app.status == "DEPLOY_FAILED"
        assert "that loads what it shares with others has ended" in app.message


@pytest.mark.local_only("a replica loads for itself, and only what it asks for")
async def test_what_hangs_while_it_loads_goes_with_its_application(
    shared: Instance, tmp_path: Path
) -> None:
    mark = tmp_path / "hangs"
    env = {"env_vars": {"HANG_ONCE": str(mark)}}
    app = Hangs.options(ray_actor_options={"runtime_env": env}).bind()
    async with ControlClient(shared.home) as client:
        await client.deploy([build(app, "hangs", "/hangs")])
    await until_true(mark.exists, "it loads")
    await shared.delete("hangs")
    # The same again does not wait for what hangs.
    async with shared.running(app, "hangs") as url:
        assert (await get(url)).body == b"well"


def test_a_process_that_could_not_share_loads_itself_once() -> None:
    calls = []

    def load() -> str:
        calls.append(1)
        return "model"

    assert serve.preloaded(load) == serve.preloaded(load) == "model"
    assert calls == [1]
    assert serve.preloaded("tests.e2e.preload_model:Model.__name__.upper") == "MODEL"
