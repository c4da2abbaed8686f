"""The system's own gRPC services, TLS, and the end of a front door."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import trustme
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tests.integration.rig import GrpcDoor, Rig, until
from tests.integration.test_grpc import Kitchen, failure, order
from tests.kitchen import SERVICE, pb2, pb2_grpc

from remora.core.snapshot import AppRoute, Snapshot
from remora.grpc_util import RayServegRPCContext
from remora.proxy.grpc.server import cut_connections
from remora.proxy.grpc.system import APIS, HEALTH, REFLECTIONS
from remora.transport.membership import Membership, join
from remora.types import NodeID

pytestmark = pytest.mark.one_loop
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def _health(channel: Any, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


def _ask_api(channel: Any, service: str, method: str) -> Any:
    return channel.unary_unary(f"/{service}/{method}")(b"")


async def _reflect(channel: Any, service: str, **request: Any) -> Any:
    """One question to the reflection service, as grpcurl asks it."""
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )(iter([reflection_pb2.ServerReflectionRequest(**request)]))
    return await anext(aiter(call))


# -- health -----------------------------------------------------------------------------------


async def test_health_is_not_serving_until_a_first_application_is_up(rig: Rig) -> None:
    door = await rig.grpc_door(apps=())
    async with aio.insecure_channel(door.address) as channel:
        assert await _health(channel) == _NOT_SERVING
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert (await watch.read()).status == _NOT_SERVING
        for service in APIS:
            for method in ("Healthz", "ListApplications"):
                error = await failure(_ask_api(channel, service, method))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        door.client.show(Snapshot(2, {"late": AppRoute("late", None, "App")}))
        assert (await watch.read()).status == _SERVING
        assert await _health(channel) == _SERVING
        assert await _health(channel, SERVICE) == _SERVING
        # Once ready, it stays so: no application is a state that one may want.
        door.client.show(Snapshot(3))
        assert await _health(channel) == _SERVING


async def test_an_unknown_service_has_no_health(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen))
    async with aio.insecure_channel(door.address) as channel:
        error = await failure(_health(channel, "no.Such"))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_ray_serves_questions_are_answered_under_both_names(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen), apps=("b", "a"))
    async with aio.insecure_channel(door.address) as channel:
        for service in APIS:
            assert await _ask_api(channel, service, "Healthz") == b"\x0a\x07success"
            assert await _ask_api(channel, service, "ListApplications") == b"\x0a\x01a\x0a\x01b"


async def test_a_draining_door_says_so_and_lets_what_is_under_way_end(rig: Rig) -> None:
    node = await rig.node(Kitchen)
    door = await rig.grpc_door(node)
    async with aio.insecure_channel(door.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == _SERVING
        call = pb2_grpc().KitchenStub(channel).Cook(order("waits"))
        await until(lambda: node.target.seen == ["begun"])
        stopping = asyncio.create_task(door.server.stop(5))
        assert (await watch.read()).status == _NOT_SERVING
        watch.cancel()
        node.target.go_on.set()
        assert (await call).dish == "waited"
        await stopping


async def test_a_watch_that_stays_open_holds_up_no_drain(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen))
    async with aio.insecure_channel(door.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == _SERVING
        async with asyncio.timeout(10):
            stopping = asyncio.create_task(door.server.stop(60))
            assert (await watch.read()).status == _NOT_SERVING
            await stopping
            assert (await failure(watch.read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_no_request_that_crosses_a_drain_looks_cancelled(rig: Rig) -> None:
    node = await rig.node(Kitchen)
    door = await rig.grpc_door(node)
    seen: set[grpc.StatusCode] = set()

    async def ask_until_unreachable(channel: Any) -> None:
        while True:
            try:
                await pb2_grpc().KitchenStub(channel).Cook(order())
            except aio.AioRpcError as error:
                seen.add(error.code())
                if "stops" not in (error.details() or ""):
                    return

    async with aio.insecure_channel(door.address) as channel:
        waiting = pb2_grpc().KitchenStub(channel).Cook(order("waits"))
        await until(lambda: node.target.seen == ["begun"])
        async with asyncio.TaskGroup() as clients:
            for _ in range(16):
                clients.create_task(ask_until_unreachable(channel))
            stopping = clients.create_task(door.server.stop(60))
            await until(lambda: bool(seen))
            node.target.go_on.set()
            assert (await waiting).dish == "waited"
            await stopping
    assert seen == {grpc.StatusCode.UNAVAILABLE}


def test_cutting_connections_leaves_no_descriptor_open() -> None:
    def descriptors() -> list[str]:
        return [path.name for path in Path("/proc/self/fd").iterdir()]

    before = descriptors()
    cut_connections(0)
    assert descriptors() == before


async def test_health_is_not_serving_while_the_instance_shuts_down(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen))
    async with aio.insecure_channel(door.address) as channel:
        assert await _health(channel) == _SERVING
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == _SERVING
        door.client.show(Snapshot(2, leaving={"/": "default"}, ending=True))
        assert (await watch.read()).status == _NOT_SERVING
        assert await _health(channel) == _NOT_SERVING
        door.client.show(Snapshot(3, ending=True))
        error = await failure(pb2_grpc().KitchenStub(channel).Cook(order()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_health_is_not_serving_on_a_node_that_drains_and_calls_are_served(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen))
    known = door.client.snapshot
    async with aio.insecure_channel(door.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == _SERVING
        try:
            join(Membership("here"))
            nodes = (NodeID("here"),)
            door.client.show(msgspec.structs.replace(known, version=2, draining=nodes))
            assert (await watch.read()).status == _NOT_SERVING
            await pb2_grpc().KitchenStub(channel).Cook(order())
        finally:
            join(Membership())


# -- reflection -------------------------------------------------------------------------------


@pytest.mark.parametrize("reflection", REFLECTIONS)
async def test_reflection_lists_every_service_and_describes_it(rig: Rig, reflection: str) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen))
    async with aio.insecure_channel(door.address) as channel:
        answer = await _reflect(channel, reflection, list_services="")
        names = {service.name for service in answer.list_services_response.service}
        assert names == {SERVICE, "kitchen.v1.Garden", HEALTH, *REFLECTIONS, *APIS}
        for name in names:
            answer = await _reflect(channel, reflection, file_containing_symbol=name)
            files = answer.file_descriptor_response.file_descriptor_proto
            described = [descriptor_pb2.FileDescriptorProto.FromString(data) for data in files]
            assert any(
                f"{file.package}.{service.name}" == name
                for file in described
                for service in file.service
            ), name


async def test_a_client_that_knows_nothing_can_call_what_reflection_tells(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen))
    async with aio.insecure_channel(door.address) as channel:
        answer = await _reflect(channel, REFLECTIONS[0], file_containing_symbol=SERVICE)
        pool = descriptor_pool.DescriptorPool()
        for data in answer.file_descriptor_response.file_descriptor_proto:
            pool.AddSerializedFile(data)
        cook = pool.FindServiceByName(SERVICE).methods_by_name["Cook"]
        request = message_factory.GetMessageClass(cook.input_type)(dish="soup", count=4)
        data = await channel.unary_unary(f"/{SERVICE}/Cook")(request.SerializeToString())
        assert message_factory.GetMessageClass(cook.output_type).FromString(data).count == 5


async def test_reflection_can_be_left_out(rig: Rig) -> None:
    door = await rig.grpc_door(await rig.node(Kitchen), enable_reflection=False)
    async with aio.insecure_channel(door.address) as channel:
        error = await failure(_reflect(channel, REFLECTIONS[0], list_services=""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


# -- TLS --------------------------------------------------------------------------------------


class Knows:
    """Says who the client is."""

    async def Cook(self, order: Any, grpc_context: RayServegRPCContext) -> Any:
        identities = grpc_context.peer_identities() or []
        return pb2().Plate(dish=b",".join(identities).decode())


def _pem(folder: Path, name: str, certificate: trustme.LeafCert) -> dict[str, Any]:
    key, chain = folder / f"{name}.key", folder / f"{name}.pem"
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(chain)
    return {"ssl_keyfile": str(key), "ssl_certfile": str(chain)}


async def _cook(door: GrpcDoor, credentials: Any) -> Any:
    async with aio.secure_channel(door.address, credentials) as channel:
        return await pb2_grpc().KitchenStub(channel).Cook(order())


async def test_with_a_certificate_the_port_speaks_tls_only(rig: Rig, tmp_path: Path) -> None:
    ca = trustme.CA()
    files = _pem(tmp_path, "server", ca.issue_cert("127.0.0.1"))
    door = await rig.grpc_door(await rig.node(Knows), **files)
    roots = ca.cert_pem.bytes()
    assert (await _cook(door, grpc.ssl_channel_credentials(roots))).dish == ""
    async with aio.insecure_channel(door.address) as channel:
        error = await failure(pb2_grpc().KitchenStub(channel).Cook(order()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_taken_in_place(rig: Rig, tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    files = _pem(tmp_path, "server", old.issue_cert("127.0.0.1"))
    door = await rig.grpc_door(await rig.node(Knows), **files)
    await _cook(door, grpc.ssl_channel_credentials(old.cert_pem.bytes()))
    renewed = new.issue_cert("127.0.0.1")
    renewed.cert_chain_pems[0].write_to_path(files["ssl_certfile"])
    # Half of a pair: the old certificate stays.
    await _cook(door, grpc.ssl_channel_credentials(old.cert_pem.bytes()))
    renewed.private_key_pem.write_to_path(files["ssl_keyfile"])
    await _cook(door, grpc.ssl_channel_credentials(new.cert_pem.bytes()))


async def test_with_authorities_clients_must_show_a_certificate(rig: Rig, tmp_path: Path) -> None:
    ca = trustme.CA()
    files = _pem(tmp_path, "server", ca.issue_cert("127.0.0.1"))
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    door = await rig.grpc_door(
        await rig.node(Knows), ssl_ca_certs=str(tmp_path / "ca.pem"), **files
    )
    client = ca.issue_cert("fish.example")
    shown = grpc.ssl_channel_credentials(
        ca.cert_pem.bytes(), client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
    )
    assert (await _cook(door, shown)).dish == "fish.example"
    error = await failure(_cook(door, grpc.ssl_channel_credentials(ca.cert_pem.bytes())))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_authority_that_was_taken_out_is_trusted_no_more(rig: Rig, tmp_path: Path) -> None:
    ca, old, new = trustme.CA(), trustme.CA(), trustme.CA()
    files = _pem(tmp_path, "server", ca.issue_cert("127.0.0.1"))
    old.cert_pem.write_to_path(tmp_path / "ca.pem")
    door = await rig.grpc_door(
        await rig.node(Knows), ssl_ca_certs=str(tmp_path / "ca.pem"), **files
    )

    def shown(authority: trustme.CA) -> Any:
        client = authority.issue_cert("fish.example")
        key, chain = client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
        return grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)

    first = shown(old)
    assert (await _cook(door, first)).dish == "fish.example"
    new.cert_pem.write_to_path(tmp_path / "ca.pem")
    assert (await _cook(door, shown(new))).dish == "fish.example"
    error = await failure(_cook(door, first))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
