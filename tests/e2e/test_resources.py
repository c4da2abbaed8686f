"""Real replicas on a machine that is said to have GPUs: what they see, and who has to wait."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import engines
from tests.e2e.conftest import _folder
from tests.e2e.instances import Instance
from tests.e2e.load import get

import remora as serve
from remora.build.graph import build
from remora.config import HTTPOptions
from remora.control.client import ControlClient
from remora.options.resources import MachineOptions

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def machine() -> Iterator[Instance]:
    """An instance whose machine is said to have two GPUs, whatever it has."""
    folder = _folder()
    options = MachineOptions(
        resources={"GPU": 2.0, "CPU": 4.0, "tokenizer": 1.0}, labels={"zone": "eu"}
    )
    instance = Instance(folder, HTTPOptions(port=0), machine=options)
    try:
        yield instance
    finally:
        try:
            instance.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@serve.deployment
class Seen:
    def __call__(self) -> dict[str, Any]:
        context = serve.get_replica_context()
        return {
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "rank": context.rank.rank,
            "gang": context.gang_context and context.gang_context.member_replica_ids,
        }


async def seen(url: str, count: int) -> list[dict[str, Any]]:
    """What each of `count` replicas says, by rank."""
    found: dict[int, dict[str, Any]] = {}
    for _ in range(200):
        answer = (await get(url)).json
        found[answer["rank"]] = answer
        if len(found) == count:
            break
    return [found[rank] for rank in sorted(found)]


async def test_whole_gpus_are_exclusive_and_shares_are_put_together(machine: Instance) -> None:
    whole = Seen.options(ray_actor_options={"num_gpus": 1})
    share = Seen.options(ray_actor_options={"num_gpus": 0.5, "num_cpus": 1.5}, num_replicas=2)
    async with (
        machine.running(whole.bind(), "whole") as first,
        machine.running(share.bind(), "share") as second,
    ):
        (alone,) = await seen(first, 1)
        together = await seen(second, 2)
    assert {each["gpus"] for each in together} != {alone["gpus"]}
    assert len({each["gpus"] for each in together}) == 1
    assert {alone["gpus"], together[0]["gpus"]} == {"0", "1"}
    # On Ray each reserves a processor that does not say how many.
    usual = "1" if engines.is_ray() else os.environ.get("OMP_NUM_THREADS")
    assert (alone["threads"], together[0]["threads"]) == (usual, "1")


@pytest.mark.local_only("on Ray a replica is in its first bundle, and what it starts in the others")
async def test_a_replica_sees_the_gpus_of_all_its_bundles(machine: Instance) -> None:
    bundles = [{"GPU": 1.0}, {"GPU": 1.0}]
    grouped = Seen.options(placement_group_bundles=bundles)
    async with machine.running(grouped.bind(), "bundles") as url:
        assert [each["gpus"] for each in await seen(url, 1)] == ["0,1"]


async def test_members_of_a_gang_find_each_other(machine: Instance) -> None:
    gang = Seen.options(num_replicas=2, gang_scheduling_config={"gang_size": 2})
    async with machine.running(gang.bind(), "gang") as url:
        answers = await seen(url, 2)
        status = await machine.app("gang")
        running = {each.replica_id for each in status.deployments["Seen"].replicas}
    assert [set(each["gang"]) for each in answers] == [running, running]


async def test_what_finds_no_room_starts_when_there_is_some(machine: Instance) -> None:
    wants = Seen.options(ray_actor_options={"resources": {"tokenizer": 1}})
    await machine.run(wants.bind(), "holder")
    async with ControlClient(machine.home) as client:
        await client.deploy([build(wants.bind(), "waiter", "/waiter")])
    text = "tokenizer: 1 needed, 0 free of 1 (held by holder/Seen 1)"
    await machine.wait(lambda now: text in now.applications["waiter"].message, text)
    await machine.delete("holder")
    await machine.wait(lambda now: now.applications["waiter"].status == "RUNNING", "it runs")
    await machine.delete("waiter")


NEEDS_TWO = """
import os
import remora as serve

@serve.deployment(ray_actor_options={'num_gpus': 2, 'label_selector': {'zone': 'eu'}})
def app():
    return os.environ['CUDA_VISIBLE_DEVICES']
app = app.bind()
"""


def run_on(remora: Any, folder: Path, num_gpus: int) -> Any:
    (folder / "app.py").write_text(NEEDS_TWO)
    flags = ["--port", "0", "--num-gpus", str(num_gpus), "--labels", '{"zone": "eu"}']
    return remora("run", *flags, "app:app")


def test_the_command_line_says_what_the_machine_has(remora: Any, tmp_path: Path) -> None:
    command = run_on(remora, tmp_path, 2)
    assert command.wait_url()
    command.process.terminate()
    assert command.wait() == 0


@pytest.mark.local_only("in a cluster a node that has it may join")
def test_what_the_machine_does_not_have_is_refused(remora: Any, tmp_path: Path) -> None:
    refused = run_on(remora, tmp_path, 1)
    assert refused.wait() == 1
    assert "GPU: 2 needed, 1 free of 1" in refused.output
