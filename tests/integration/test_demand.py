"""What is asked of a deployment reaches the controller: from replicas and from routers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.rig import Node, Rig, call, envelope, stream, until
from tests.integration.test_control_client import Instance, running
from tests.unit.control.rig import app, deployment

from remora.config import AutoscalingConfig
from remora.control.client import ControlClient
from remora.errors import ConfigError, ExternalScalerDisabledError, UnknownTargetError
from remora.home import Home
from remora.router.client import RoutingClient
from remora.transport.packing import pack_call
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.messages import CallKind, Envelope
from remora.wire.scaling import LoadWanted, ReplicaLoad, ScalingDetail

MODEL = DeploymentID("Model")


class App:
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def hold(self) -> str:
        await self.gate.wait()
        return "done"

    async def items(self) -> AsyncIterator[int]:
        yield 1
        await self.gate.wait()
        yield 2

    async def quick(self) -> str:
        return "done"


class Reports:
    """What one replica reports."""

    def __init__(self, node: Node, interval_s: float = 60.0) -> None:
        self.loads: list[float] = []
        self.metrics: list[dict[str, float]] = []
        wanted = pack(LoadWanted(0.1, interval_s))
        self._task = asyncio.create_task(self._follow(node, wanted))

    async def _follow(self, node: Node, wanted: bytes) -> None:
        made: Any = node.replica.control["load"](wanted)
        async with aclosing(made) as items:
            async for item in items:
                load = unpack(item, ReplicaLoad)
                if load.ongoing is not None:
                    self.loads.append(load.ongoing)
                if load.metrics is not None:
                    self.metrics.append(load.metrics)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_a_replica_reports_what_it_works_on_and_when_it_has_ended(rig: Rig) -> None:
    node, router = await rig.pair(App)
    reports = Reports(node)
    await until(lambda: reports.loads == [0.0])
    calls = [call(router, "hold") for _ in range(3)]
    await until(lambda: reports.loads[-1] == 3.0)
    node.target.gate.set()
    await asyncio.gather(*calls)
    await until(lambda: reports.loads[-1] == 0.0)
    await reports.close()
    assert node.replica.on_busy == node.replica.watchdog.arm


async def test_a_stream_counts_for_as_long_as_it_takes(rig: Rig) -> None:
    node, router = await rig.pair(App)
    reports = Reports(node)
    reading = stream(router, "items")
    await until(lambda: reports.loads and reports.loads[-1] == 1.0)
    # It does not change, so nothing more is said.
    said = len(reports.loads)
    await asyncio.sleep(0.25)
    assert reports.loads[said:] in ([], [1.0])
    reading.cancel()
    await until(lambda: reports.loads[-1] == 0.0)
    await reports.close()


async def test_a_slot_that_is_held_counts(rig: Rig) -> None:
    node, router = await rig.pair(App)
    reports = Reports(node)
    held = router.call(envelope("quick", hold=True), pack_call((), {})[1])
    await until(lambda: reports.loads and reports.loads[-1] == 1.0)
    held.cancel()
    await until(lambda: reports.loads[-1] == 0.0)
    await reports.close()


async def test_a_quiet_replica_says_so_again_and_again(rig: Rig) -> None:
    node, _ = await rig.pair(App)
    reports = Reports(node, interval_s=0.05)
    await until(lambda: len(reports.loads) >= 4)
    assert set(reports.loads) == {0.0}
    await reports.close()


class Counts(App):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def record_autoscaling_stats(self) -> dict[str, Any]:
        self.calls += 1
        if self.calls == 2:
            raise ValueError("not now")
        return {"waiting": self.calls}


async def test_what_a_replica_records_of_itself_is_reported(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    node, _ = await rig.pair(Counts)
    reports = Reports(node, interval_s=0.02)
    await until(lambda: len(reports.metrics) >= 3)
    assert reports.metrics[:2] == [{"waiting": 1.0}, {"waiting": 3.0}]
    assert caplog.text.count("record_autoscaling_stats failed") == 1
    assert "not now" in caplog.text
    await reports.close()


class Nonsense(App):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what
        self.calls = 0

    async def record_autoscaling_stats(self) -> Any:
        self.calls += 1
        return self.what


@pytest.mark.parametrize("what", ["many", {"a": "b"}, {1: 2.0}, {"a": float("nan")}, None])
async def test_nonsense_ends_the_recording_and_nothing_else(
    rig: Rig, what: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node, router = await rig.pair(Nonsense, what)
    reports = Reports(node, interval_s=0.02)
    await until(lambda: "It is not called any more" in caplog.text)
    await until(lambda: len(reports.loads) >= 3)
    assert (node.target.calls, reports.metrics) == (1, [])
    assert await call(router, "quick") is not None
    await reports.close()


# -------------------------------------------------------------------------------------- routers


@pytest.fixture
async def instance(remora_home: Path) -> AsyncIterator[Instance]:
    made = Instance(Home.locate())
    await made.start()
    yield made
    await made.kill()
    made.sock.close()


@pytest.fixture
async def caller(instance: Instance) -> AsyncIterator[RoutingClient]:
    made = RoutingClient(instance.home, "script")
    made.start()
    await made.wait_synced(5)
    yield made
    await made.close()


async def detail_of(client: ControlClient) -> ScalingDetail:
    return (await client.scaling("default", "Model"))[0]


async def until_detail(client: ControlClient, condition: Any) -> ScalingDetail:
    async with asyncio.timeout(10):
        while True:
            found = await detail_of(client)
            if condition(found):
                return found
            await asyncio.sleep(0.01)


def request(client: RoutingClient) -> Any:
    wanted = Envelope("1", "default", "Model", "__call__", CallKind.UNARY)
    return client.router(MODEL).call(wanted, b"")


async def test_a_request_where_no_replica_runs_starts_one_at_once(
    instance: Instance, caller: RoutingClient
) -> None:
    config = AutoscalingConfig(min_replicas=0, max_replicas=5, upscale_delay_s=600)
    async with ControlClient(instance.home) as client:
        await client.deploy([app("default", deployment(autoscaling_config=config))])
        await running(client)
        waiting = request(caller)
        started = await until_detail(client, lambda d: d.target_num_replicas == 1)
        assert started.decisions[-1].formula == "somebody waits and no replica runs: 1"
        waiting.cancel()
        await until_detail(client, lambda d: d.metrics.get("queued") == 0)


async def test_what_waits_in_a_router_is_demand_and_goes_with_it(
    instance: Instance, caller: RoutingClient
) -> None:
    config = AutoscalingConfig(max_replicas=5, upscale_delay_s=600)
    async with ControlClient(instance.home) as client:
        await client.deploy([app("default", deployment(autoscaling_config=config))])
        await running(client)
        # Nobody answers at the address of the replica, so all of them wait.
        calls = [request(caller) for _ in range(7)]
        await until_detail(client, lambda d: d.metrics.get("queued") == 7)
        for each in calls[:3]:
            each.cancel()
        await until_detail(client, lambda d: d.metrics.get("queued") == 4)
        await caller.close()
        await until_detail(client, lambda d: d.metrics.get("queued") == 0)
        for each in calls[3:]:
            with pytest.raises(Exception, match="shut down"):
                await each


async def test_a_controller_that_restarts_hears_of_what_waits(
    instance: Instance, caller: RoutingClient
) -> None:
    config = AutoscalingConfig(max_replicas=5, upscale_delay_s=600)
    async with ControlClient(instance.home) as client:
        await client.deploy([app("default", deployment(autoscaling_config=config))])
        await running(client)
        calls = [request(caller) for _ in range(3)]
        await until_detail(client, lambda d: d.metrics.get("queued") == 3)
        await instance.kill()
        # The end of a process would have cut them, as a server does from Python 3.13 on.
        client.close()
        if caller._channel is not None:
            caller._channel.close()
        await instance.start()
        await until_detail(client, lambda d: d.metrics.get("queued") == 3)
        for each in calls:
            each.cancel()


async def test_a_router_reports_nothing_that_nobody_wants(
    instance: Instance, caller: RoutingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []
    async with ControlClient(instance.home) as client:
        from remora.router import demand_report

        async def noted(_channel: object, method: str, *_: object) -> None:
            reports.append(method)

        monkeypatch.setattr(demand_report, "call_control", noted)
        await client.deploy([app("default", deployment())])
        await running(client)
        waiting = request(caller)
        await asyncio.sleep(0.2)
        assert reports == []
        waiting.cancel()


# ----------------------------------------------------------------------------------- from outside


async def test_a_scaler_outside_sets_a_number_over_the_wire(instance: Instance) -> None:
    outside = msgspec.structs.replace(app("default", deployment()), external_scaler=True)
    async with ControlClient(instance.home) as client:
        await client.deploy([outside, app("other", route_prefix="/other")])
        await running(client)
        await client.scale("default", "Model", 3)
        found = await until_detail(client, lambda d: d.running == 3)
        assert (found.by, found.target_num_replicas) == ("outside", 3)
        with pytest.raises(ConfigError, match="num_replicas=-1"):
            await client.scale("default", "Model", -1)
        with pytest.raises(ExternalScalerDisabledError, match="external_scaler_enabled"):
            await client.scale("other", "Model", 3)
        with pytest.raises(UnknownTargetError, match="no deployment 'Nobody'"):
            await client.scaling("default", "Nobody")
        await client.set_capacity(34)
        await until_detail(client, lambda d: d.running == 1)
        assert len(await client.scaling()) == 2
