"""gRPC through real processes, asked by grpcio's blocking client in this one."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Command, Instance
from tests.e2e.processes import kill
from tests.e2e.waiting import until, until_true
from tests.kitchen import folder, pb2, pb2_grpc

import remora as serve
from remora.build.grpc_services import grpc_setup
from remora.config import HTTPOptions, gRPCOptions
from remora.errors import InstanceError
from remora.wire.grpc import GrpcSetup

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


class Cook:
    """Names itself; `wait` in an order makes it wait for the client to leave."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def Cook(self, order: Any) -> Any:
        if order.dish == "wait":
            await asyncio.sleep(30)
        return pb2().Plate(dish=f"{self.name} {order.dish}")

    async def Serve(self, order: Any) -> Any:
        for number in range(order.count):
            yield pb2().Plate(count=number)


def setup(port: int = 0, **options: Any) -> GrpcSetup:
    functions = [pb2_grpc().add_KitchenServicer_to_server]
    made = grpc_setup(
        gRPCOptions(port=port, grpc_servicer_functions=functions, **options), "127.0.0.1"
    )
    assert made is not None
    return made


class Chef:
    """Lets another deployment cook."""

    def __init__(self, cook: Any) -> None:
        self.cook = cook

    async def Cook(self, order: Any) -> Any:
        plate = await self.cook.Cook.remote(order)
        return pb2().Plate(dish=f"chef's {plate.dish}")


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """One with two proxies for the tests below; each leaves no application behind."""
    root = Path(tempfile.mkdtemp(prefix="remora-e-"))
    made = Instance(root, HTTPOptions(port=0, num_proxies=2), setup())
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(root, ignore_errors=True)


def app(name: str, **options: Any) -> Any:
    return serve.deployment(Cook).options(**options).bind(name)


def cook(address: str, dish: str = "rice", application: str | None = None, **call: Any) -> str:
    metadata = (("application", application),) if application else ()
    # A channel of its own: channels to one address share their connection otherwise.
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(address, options) as channel:
        stub = pb2_grpc().KitchenStub(channel)
        return str(stub.Cook(pb2().Order(dish=dish), metadata=metadata, timeout=10, **call).dish)


def is_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_applications_are_served_side_by_side_also_without_a_route(
    instance: Instance,
) -> None:
    address = instance.grpc_address
    await instance.run(app("a"), "a", routed=False)
    assert cook(address) == "a rice"
    await instance.run(app("b"), "b")
    assert cook(address, application="b") == "b rice"
    assert cook(address, application="a") == "a rice"
    with pytest.raises(grpc.RpcError) as caught:
        cook(address)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert instance.grpc_address == (await instance.status()).grpc_address
    await instance.delete("a")
    await instance.delete("b")


async def test_a_handler_calls_other_deployments(instance: Instance) -> None:
    chef = serve.deployment(Chef).bind(app("a"))
    async with instance.running(chef, "chef"):
        assert cook(instance.grpc_address) == "chef's a rice"


async def test_a_proxy_that_dies_takes_its_own_connections_only(instance: Instance) -> None:
    await instance.run(app("a"), "a")
    address = instance.grpc_address
    with grpc.insecure_channel(address) as channel:
        stub = pb2_grpc().KitchenStub(channel)
        stub.Cook(pb2().Order(), timeout=10)
        before = {proxy.pid for proxy in (await instance.status()).proxies}
        assert len(before) == 2
        for victim in before:
            kill(victim)

        def answers() -> bool:
            try:
                stub.Cook(pb2().Order(), timeout=10, wait_for_ready=True)
            except grpc.RpcError:
                # A request on the connection that was cut; the next one finds another.
                return False
            return True

        await until_true(answers, "the channel has connected again, to whoever listens first")
    await instance.wait(
        lambda s: len({p.pid for p in s.proxies if p.pid} - before) == 2, "both are back"
    )
    assert [cook(address, wait_for_ready=True) for _ in range(8)] == ["a rice"] * 8
    await instance.delete("a")


async def test_several_proxies_share_the_connections(instance: Instance) -> None:
    await instance.run(app("a"), "a")
    address = instance.grpc_address
    logs = [instance.home.logs / f"access-proxy-{number}.log" for number in (1, 2)]

    def both_have_served() -> bool:
        cook(address)
        return all(log.exists() and "GRPC" in log.read_text() for log in logs)

    await until_true(both_have_served, "the kernel has sent connections to both proxies")
    await instance.delete("a")


async def test_what_is_under_way_ends_before_a_shutdown(start_instance: StartInstance) -> None:
    instance = start_instance(grpc=setup())
    await instance.run(app("a"), "a")
    with grpc.insecure_channel(instance.grpc_address) as channel:
        stub = pb2_grpc().KitchenStub(channel)
        counts = stub.Serve(pb2().Order(count=5_000), timeout=20)
        assert next(counts).count == 0
        ending = asyncio.create_task(asyncio.to_thread(instance.end))
        assert sum(1 for _ in counts) == 4_999
        await ending


# -- ports ------------------------------------------------------------------------------------


def test_a_taken_port_is_told_at_once(start_instance: StartInstance) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InstanceError, match=f"{port}: the port is in use.*--grpc-port"):
            start_instance(grpc=setup(port))


def test_two_instances_do_not_share_a_port(start_instance: StartInstance) -> None:
    first = start_instance(grpc=setup())
    port = int(first.grpc_address.rpartition(":")[2])
    with pytest.raises(InstanceError, match="the port is in use"):
        start_instance(grpc=setup(port))


async def test_grpc_is_served_without_http(start_instance: StartInstance) -> None:
    instance = start_instance(grpc=setup(), host=None)
    assert instance.url == ""
    assert not is_serving(instance.grpc_address)
    await instance.run(app("a"), "a")
    await until_true(lambda: is_serving(instance.grpc_address), "the proxy knows")
    assert cook(instance.grpc_address) == "a rice"


def test_an_instance_without_grpc_loads_none_of_it(tmp_path: Path, home: Path) -> None:
    instance = Instance(home, HTTPOptions(port=0))
    try:
        asyncio.run(instance.run(serve.deployment(lambda: 1, name="one").bind(), "one"))
        maps = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in instance.own()}
        assert len(maps) >= 4
        assert [pid for pid, text in maps.items() if "cygrpc" in text] == []
    finally:
        instance.end()


# -- scripts and commands ---------------------------------------------------------------------

SERVER = """
import kitchen_pb2
import remora as serve


@serve.deployment
class Kitchen:
    async def Cook(self, order):
        return kitchen_pb2.Plate(dish=order.dish.upper())


app = Kitchen.bind()
"""
_ADD = "kitchen_pb2_grpc.add_KitchenServicer_to_server"

SCRIPT = """
import grpc
import kitchen_pb2, kitchen_pb2_grpc
import remora as serve
from remora.errors import ConfigError
from server import app

ADD = kitchen_pb2_grpc.add_KitchenServicer_to_server
options = {"port": 0, "grpc_servicer_functions": [ADD]}
serve.start(http_options={"port": 0}, grpc_options=options)
serve.run(app)
from remora.current import current_instance
address = current_instance().grpc_address
with grpc.insecure_channel(address) as channel:
    stub = kitchen_pb2_grpc.KitchenStub(channel)
    print(stub.Cook(kitchen_pb2.Order(dish="fish"), timeout=10).dish)
serve.start(grpc_options=options)
try:
    serve.start(grpc_options={**options, "request_timeout_s": 5})
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a server and the generated modules."""
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "script.py").write_text(SCRIPT)
    for name in ("kitchen_pb2.py", "kitchen_pb2_grpc.py"):
        (tmp_path / name).write_bytes((folder() / name).read_bytes())
    return tmp_path


def test_a_script_starts_grpc_with_functions(here: Path, command: Callable[..., Command]) -> None:
    import sys

    script = command(sys.executable, "script.py")
    assert script.wait() == 0, script.output
    assert "FISH" in script.output
    assert "they are others, and the instance in" in script.output


def test_an_instance_of_the_command_line_serves_grpc(
    here: Path, remora: Callable[..., Command]
) -> None:
    flags = ("--grpc-port", "0", "--grpc-servicer-functions", _ADD)
    started = remora("start", "--http-port", "0", *flags, "--grpc-disable-reflection")
    assert started.wait() == 0, started.output
    address = started.output.partition("gRPC at ")[2].split()[0].rstrip(".")
    run = remora("run", "server:app", "--non-blocking", *flags)
    assert run.wait() == 0, run.output
    assert "options for gRPC have no effect" in run.output
    assert until(lambda: cook(address, "fish", wait_for_ready=True), "it serves") == "FISH"
    status = remora("status")
    assert status.wait() == 0
    assert f"gRPC {address}" in status.output
    assert remora("shutdown", "-y").wait() == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_pb2_grpc.add_X_to_server", "cannot be imported: No module named"),
        ("kitchen_pb2_grpc.add_KitchenServicer_to_serve", "Did you mean 'add_KitchenServicer_to"),
        ("kitchen_pb2_grpc.KitchenStub", "no add_…Servicer_to_server function"),
    ],
)
def test_a_wrong_function_fails_at_the_start(
    here: Path, remora: Callable[..., Command], function: str, message: str
) -> None:
    started = remora("start", "--http-port", "0", "--grpc-servicer-functions", function)
    assert started.wait() == 1
    assert message in started.output
    assert "Traceback" not in started.output
