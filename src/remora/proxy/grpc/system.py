"""The system's own services: health, reflection, and what tools of Ray Serve ask.

`grpc.health.v1.Health` is what load balancers know. The two questions of Ray Serve's own service
are answered under its name and under ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from remora.core.snapshot import Snapshot
from remora.proxy.respond import NODE_DRAINS
from remora.router.client import RoutingClient
from remora.transport.membership import mine
from remora.types import Seconds
from remora.wire.grpc import GrpcSetup

_log = logging.getLogger("remora.proxy")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
#: Who watches and does not read misses the end of it after this long.
_LAST_WORDS_S: Seconds = 1.0
HEALTH = "grpc.health.v1.Health"
#: Under both names of the reflection service the same bytes travel.
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
APIS = ("remora.RemoraAPIService", "ray.serve.RayServeAPIService")
_TEXT = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_ONE = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
_MANY = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED


def api_file(service: str) -> descriptor_pb2.FileDescriptorProto:
    """Describe one of `APIS`, with its messages. Pure."""
    package, _, name = service.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}/api_service.proto", package=package, syntax="proto3"
    )
    described = file.service.add(name=name)
    for method, field, label in (
        ("Healthz", "message", _ONE),
        ("ListApplications", "application_names", _MANY),
    ):
        file.message_type.add(name=f"{method}Request")
        answer = file.message_type.add(name=f"{method}Response")
        answer.field.add(name=field, number=1, type=_TEXT, label=label)
        described.method.add(
            name=method,
            input_type=f".{package}.{method}Request",
            output_type=f".{package}.{method}Response",
        )
    return file


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # ships no types
    """Whether this proxy takes requests, for whoever asks in whichever way."""

    def __init__(self, client: RoutingClient, services: Iterable[str]) -> None:
        self._client = client
        self._names = frozenset(("", *services))
        #: True from the first moment an application was reachable.
        self._was_ready = False
        self._is_draining = False
        #: Set, and replaced by another one, when there is news.
        self._changed = asyncio.Event()
        self._watching: set[asyncio.Task[Any]] = set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - as gRPC names it
        """Answer for one service."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return self._answer(request.service)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - as gRPC names it
        """Tell what is, and what becomes of it, until this proxy drains."""
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        told = None
        while True:
            changed = self._changed
            answer = self._answer(request.service)
            if answer != told:
                told = answer
                await context.write(answer)
            if self._is_draining:
                await context.abort(grpc.StatusCode.UNAVAILABLE, self.refusal())
            await changed.wait()

    def _answer(self, service: str) -> Any:
        status = _NOT_SERVING if self.refusal() else _SERVING
        if service not in self._names:
            status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse(status=status)

    def update(self) -> None:
        """Let those who watch look at the snapshot, which is new."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def drain(self) -> None:
        """Say NOT_SERVING from now on, and end those who watch once they have heard it."""
        self._is_draining = True
        self.update()
        if self._watching:
            await asyncio.wait(self._watching, timeout=_LAST_WORDS_S)

    def refusal(self) -> str:
        """Why no request should come here; empty: they may."""
        self._was_ready = self._was_ready or bool(self._client.snapshot.apps)
        if self._is_draining:
            return "This proxy is draining."
        if self._client.snapshot.ending:
            return "The instance is shutting down."
        if mine().node_id in self._client.snapshot.draining:
            return NODE_DRAINS
        return "" if self._was_ready else "No application has been up yet."

    @property
    def snapshot(self) -> Snapshot:
        """What runs."""
        return self._client.snapshot


class _Api:
    """Answers the two questions of one of `APIS`."""

    def __init__(self, service: str, pool: Any, state: Health) -> None:
        package = service.rpartition(".")[0]
        self._health = state
        self._healthz, self._applications = (
            message_factory.GetMessageClass(
                pool.FindMessageTypeByName(f"{package}.{method}Response")
            )
            for method in ("Healthz", "ListApplications")
        )

    async def healthz(self, _: bytes, context: Any) -> bytes:
        """Say success, or why not."""
        await self._require_ready(context)
        data: bytes = self._healthz(message="success").SerializeToString()
        return data

    async def list_applications(self, _: bytes, context: Any) -> bytes:
        """Name the applications."""
        await self._require_ready(context)
        names = sorted(self._health.snapshot.apps)
        data: bytes = self._applications(application_names=names).SerializeToString()
        return data

    async def _require_ready(self, context: Any) -> None:
        if refusal := self._health.refusal():
            await context.abort(grpc.StatusCode.UNAVAILABLE, refusal)


def add_system_services(server: Any, setup: GrpcSetup, state: Health) -> None:
    """Put health, Ray Serve's questions, and reflection if it is wanted, on a server."""
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    pool = descriptor_pool.DescriptorPool()
    for service in APIS:
        file = api_file(service)
        pool.AddSerializedFile(file.SerializeToString())
        api = _Api(service, pool, state)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    service,
                    {
                        "Healthz": grpc.unary_unary_rpc_method_handler(api.healthz),
                        "ListApplications": grpc.unary_unary_rpc_method_handler(
                            api.list_applications
                        ),
                    },
                ),
            )
        )
    if setup.enable_reflection:
        _add_reflection(server, setup)


def _add_reflection(server: Any, setup: GrpcSetup) -> None:
    names = [*(service.name for service in setup.services), HEALTH, *REFLECTIONS, *APIS]
    servicer = reflection.aio.ReflectionServicer(names, pool=_reflection_pool(setup.files))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in REFLECTIONS:
        methods = {"ServerReflectionInfo": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def _reflection_pool(files: Iterable[bytes]) -> Any:
    """All that reflection tells of. The user's files come first: where two disagree, theirs count."""
    own = [health_pb2.DESCRIPTOR.serialized_pb, *_reflection_files()]
    own += [api_file(service).SerializeToString() for service in APIS]
    pool = descriptor_pool.DescriptorPool()
    for data in (*files, *own):
        try:
            pool.AddSerializedFile(data)
        except TypeError as error:
            name = descriptor_pb2.FileDescriptorProto.FromString(data).name
            _log.warning("gRPC reflection leaves out %s: %s", name, error)
    return pool


def _reflection_files() -> list[bytes]:
    """The file of the reflection service, under both of its names."""
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    # The two differ in the package alone.
    stable = descriptor_pb2.FileDescriptorProto()
    stable.CopyFrom(alpha)
    stable.name, stable.package = alpha.name.replace("v1alpha", "v1"), "grpc.reflection.v1"
    _move(stable, f".{alpha.package}.", f".{stable.package}.")
    return [alpha.SerializeToString(), stable.SerializeToString()]


def _move(file: descriptor_pb2.FileDescriptorProto, old: str, new: str) -> None:
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
