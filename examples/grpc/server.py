"""A gRPC service: all four kinds of methods, a status of its own, and another deployment behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fish_pb2
import grpc

import remora as serve
from remora.grpc_util import RayServegRPCContext, gRPCInputStream
from remora.handle import DeploymentHandle


@serve.deployment
class Scales:
    def weigh(self, name: str) -> int:
        return len(name) * 100


@serve.deployment
class Harbour:
    def __init__(self, scales: DeploymentHandle[Scales]) -> None:
        self.scales = scales

    async def Land(
        self, catch: fish_pb2.Catch, grpc_context: RayServegRPCContext
    ) -> fish_pb2.Report:
        if not catch.name:
            grpc_context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            grpc_context.set_details("a catch needs a name")
            raise ValueError("a catch without a name")
        grams = await self.scales.weigh.remote(catch.name)
        grpc_context.set_trailing_metadata([("quay", "3")])
        return fish_pb2.Report(text=f"{catch.name}: {grams} g")

    async def Watch(self, catch: fish_pb2.Catch) -> AsyncIterator[fish_pb2.Report]:
        for tide in ("low", "high"):
            yield fish_pb2.Report(text=f"{catch.name} at {tide} tide")

    async def Count(self, catches: gRPCInputStream[fish_pb2.Catch]) -> fish_pb2.Report:
        names = [catch.name async for catch in catches]
        return fish_pb2.Report(text=f"{len(names)} landed")

    async def Talk(
        self, catches: gRPCInputStream[fish_pb2.Catch]
    ) -> AsyncIterator[fish_pb2.Report]:
        async for catch in catches:
            yield fish_pb2.Report(text=f"heard of {catch.name}")


app = Harbour.bind(Scales.bind())
