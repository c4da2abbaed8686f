"""The service of the gRPC row, without generated code: its messages and how it joins a server."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "bench.Echo"
PATH = f"/{SERVICE}/Say"


def _describe() -> Any:
    """Register the one message type, and the service, as a generated module would."""
    file = descriptor_pb2.FileDescriptorProto(
        name="bench_echo.proto", package="bench", syntax="proto3"
    )
    file.message_type.add(name="Words").field.add(
        name="data",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    file.service.add(name="Echo").method.add(
        name="Say", input_type=".bench.Words", output_type=".bench.Words"
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Words"))


Words = _describe()
# Where a replica finds it.
Words.__module__ = __name__


def add_servicer(servicer: Any, server: Any) -> None:
    """What a generator calls `add_EchoServicer_to_server`."""
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(
            servicer.Say, Words.FromString, Words.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class Echo:
    """Answers with what it is told: the handler of both sides."""

    async def Say(self, words: Any, grpc_context: Any = None) -> Any:  # noqa: N802 - of the service
        return Words(data=words.data)
