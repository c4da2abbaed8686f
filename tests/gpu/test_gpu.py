"""Replicas on a real GPU: what they see, share and leave behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import pynvml
import pytest
import torch
from tests.e2e.conftest import _folder
from tests.e2e.instances import Instance
from tests.e2e.load import ask, client, get
from tests.e2e.waiting import until_true
from tests.gpu import models

import remora as serve
from remora.config import HTTPOptions

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(120)]

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def machine() -> Iterator[Instance]:
    """An instance that finds for itself what this machine has."""
    folder = _folder()
    instance = Instance(folder, HTTPOptions(port=0))
    try:
        yield instance
    finally:
        try:
            instance.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def used_bytes() -> int:
    """Memory that is taken on the first GPU, by whomever."""
    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


@serve.deployment
class Seen:
    def __call__(self) -> dict[str, Any]:
        usable = torch.cuda.is_available()
        return {
            "pid": os.getpid(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "count": torch.cuda.device_count(),
            "sum": float(torch.ones(1000, device="cuda").sum()) if usable else None,
        }


async def test_a_whole_gpu_is_seen_and_used(machine: Instance) -> None:
    async with machine.running(Seen.options(ray_actor_options={"num_gpus": 1}).bind(), "one") as at:
        answer = (await get(at)).json
    assert (answer["count"], answer["sum"]) == (1, 1000.0)


async def test_who_asks_for_none_sees_none(machine: Instance) -> None:
    none = Seen.options(ray_actor_options={"num_gpus": 0})
    async with machine.running(none.bind(), "none") as at:
        answer = (await get(at)).json
    assert (answer["count"], answer["sum"]) == (0, None)


async def test_shares_are_on_one_gpu_and_beside_each_other(machine: Instance) -> None:
    share = Seen.options(num_replicas=2, ray_actor_options={"num_gpus": 0.5})
    async with machine.running(share.bind(), "shares") as at, client() as session:
        answers = [(await ask(session, at)).json for _ in range(60)]
    assert len({each["pid"] for each in answers}) == 2
    assert {each["sum"] for each in answers} == {1000.0}
    assert len({each["visible"] for each in answers}) == 1


async def test_the_kind_of_gpu_is_a_label(machine: Instance) -> None:
    kind = torch.cuda.get_device_name(0).replace("NVIDIA", "").split()[0].split("-")[0]
    chosen = Seen.options(ray_actor_options={"num_gpus": 1, "accelerator_type": kind})
    async with machine.running(chosen.bind(), "kind") as at:
        assert (await get(at)).json["count"] == 1


@serve.deployment
class Model:
    """Moves what all replicas share in the memory of the processor to the GPU."""

    def __init__(self) -> None:
        self.model = serve.preloaded(models.load).to(models.DEVICE, torch.bfloat16)
        self.sizes: list[int] = []

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def many(self, rows: list[int]) -> list[float]:
        self.sizes.append(len(rows))
        with torch.inference_mode():
            inputs = torch.stack([torch.full((models.WIDTH,), row / 100) for row in rows])
            answers = self.model(inputs.to(models.DEVICE, torch.bfloat16))
            return [float(value) for value in answers.float().sum(dim=1).cpu()]

    async def __call__(self, request: Any) -> float:
        return await self.many(int(request.query_params["row"]))

    def largest(self) -> int:
        return max(self.sizes)

    def device(self) -> str:
        return str(next(self.model.parameters()).device)


def expected(row: int) -> float:
    """What the model says, without Remora."""
    model = models.load().to("cuda", torch.bfloat16)
    with torch.inference_mode():
        inputs = torch.full((1, models.WIDTH), row / 100).to("cuda", torch.bfloat16)
        return float(model(inputs).float().sum())


async def test_a_model_that_was_loaded_once_serves_batches_on_the_gpu(machine: Instance) -> None:
    shared = Model.options(
        num_replicas=2,
        max_ongoing_requests=64,
        preload=[models.load],
        ray_actor_options={"num_gpus": 0.5},
    )
    async with machine.running(shared.bind(), "model") as at:
        async with client() as session:
            urls = [f"{at}?row={row}" for row in range(128)]
            answers = await asyncio.gather(*[ask(session, url) for url in urls])
        handle = machine.handle("Model", "model")
        assert await handle.device.remote() == "cuda:0"
        assert await handle.largest.remote() > 1
    assert [each.status for each in answers] == [200] * 128
    for row in (1, 100):
        assert answers[row].json == pytest.approx(expected(row), rel=0.05, abs=0.5)


@serve.deployment
class Holder:
    """Holds memory of the GPU."""

    def __init__(self, megabytes: int) -> None:
        self.held = torch.zeros(megabytes * MEGABYTE, dtype=torch.uint8, device="cuda")

    def __call__(self) -> int:
        return os.getpid()

    def double(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.is_cuda
        return tensor * 2

    def fill(self, megabytes: int) -> int:
        return len(torch.zeros(megabytes * MEGABYTE, dtype=torch.uint8, device="cuda"))


async def test_memory_of_a_killed_replica_is_there_for_its_successor(machine: Instance) -> None:
    _, total = torch.cuda.mem_get_info()
    megabytes = int(total * 0.6 / MEGABYTE)
    before = used_bytes()
    whole = Holder.options(ray_actor_options={"num_gpus": 1})
    async with machine.running(whole.bind(megabytes), "large") as at:
        first = (await get(at)).json
        assert used_bytes() - before > 0.9 * megabytes * MEGABYTE
        os.kill(first, signal.SIGKILL)
        # Two of them do not fit: the second is there only if the first has left.
        await machine.replicas("large", 1, without={first})
        assert (await get(at)).json != first
    await until_true(lambda: used_bytes() - before < 500 * MEGABYTE, "the memory is free")


async def test_a_new_version_takes_over_a_gpu_that_its_predecessor_fills(machine: Instance) -> None:
    _, total = torch.cuda.mem_get_info()
    megabytes = int(total * 0.6 / MEGABYTE)
    whole = Holder.options(ray_actor_options={"num_gpus": 1})
    async with machine.running(whole.bind(megabytes), "next") as at:
        first = (await get(at)).json
        app = await machine.deploy(whole.bind(megabytes), "next", route="/next", code_version="2")
        assert app.status == "RUNNING", app
        assert (await get(at)).json != first


async def test_tensors_of_the_gpu_travel_through_handles(machine: Instance) -> None:
    holder = Holder.options(ray_actor_options={"num_gpus": 0.5})
    async with machine.running(holder.bind(1), "tensors"):
        handle = machine.handle("Holder", "tensors")
        tensor = torch.arange(1_000_000, dtype=torch.float32, device="cuda")
        doubled = await handle.double.remote(tensor)
    assert doubled.is_cuda
    assert torch.equal(doubled, tensor * 2)


async def test_a_gpu_without_memory_is_an_error_of_one_request(machine: Instance) -> None:
    _, total = torch.cuda.mem_get_info()
    holder = Holder.options(ray_actor_options={"num_gpus": 0.5})
    async with machine.running(holder.bind(1), "full"):
        handle = machine.handle("Holder", "full")
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            await handle.fill.remote(2 * total // MEGABYTE)
        assert await handle.fill.remote(1) == MEGABYTE


@serve.deployment(health_check_period_s=0.5)
class Fragile:
    """A failed assertion on the device leaves a process that can never use the GPU again."""

    def __init__(self) -> None:
        self.table = torch.zeros(10, device="cuda")

    def __call__(self) -> int:
        return os.getpid()

    def look_up(self, index: int) -> float:
        return float(self.table[torch.tensor([index], device="cuda")].sum())

    def check_health(self) -> None:
        torch.cuda.synchronize()


async def test_a_process_that_has_lost_its_gpu_is_replaced(machine: Instance) -> None:
    fragile = Fragile.options(ray_actor_options={"num_gpus": 1})
    async with machine.running(fragile.bind(), "fragile") as at:
        first = (await get(at)).json
        handle = machine.handle("Fragile", "fragile")
        assert await handle.look_up.remote(3) == 0.0
        with pytest.raises(RuntimeError, match=r"CUDA|device-side assert"):
            await handle.look_up.remote(10_000)
        await machine.replicas("fragile", 1, without={first})
        assert await handle.look_up.remote(3) == 0.0


async def test_a_second_replica_of_a_preloaded_model_starts_fast(machine: Instance) -> None:
    """Prints what it saw: the start of a replica that has only to take its model to the GPU."""
    shared = Model.options(preload=[models.load], ray_actor_options={"num_gpus": 0.5})
    async with machine.running(shared.bind(), "fast"):
        (first,) = await machine.pids("fast")
        began = time.monotonic()
        os.kill(first, signal.SIGKILL)
        await machine.replicas("fast", 1, without={first})
        took_s = time.monotonic() - began
    print(f"a killed replica was replaced after {took_s:.2f} s")
    assert took_s < 15.0
