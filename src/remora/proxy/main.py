"""The proxy's process: uvicorn as a library, on sockets that the supervisor holds."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvloop

from remora.config import HTTPOptions
from remora.engine.base import ProcessContext
from remora.observe import tracing
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.observe.heartbeat import begin_to_beat
from remora.observe.logs import log_of_system_process, logging_of
from remora.observe.tracing import SPANS_FILE
from remora.options.logging import LoggingConfig
from remora.proxy.accept import Tally
from remora.proxy.front import Front
from remora.proxy.server import HttpServer
from remora.router.client import RoutingClient
from remora.router.process import adopt_client, use_instance
from remora.transport.tls import ReloadingContext
from remora.types import Seconds
from remora.wire.grpc import GrpcSetup

_log = logging.getLogger("remora.proxy")
#: New objects until the collector looks at them, where gRPC is served.
_GC_THRESHOLD = 10_000
#: What is under way over gRPC has this long to end; the supervisor may have less patience.
_GRPC_GRACE_S: Seconds = 60.0


def main(context: ProcessContext) -> None:
    """Entry point of a proxy's process."""
    name = str(context.args.get("name", "proxy"))
    logging_config = logging_of(context.args)
    log_of_system_process(context, name, "proxy")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    use_instance(context.home, name)
    options = msgspec.convert(context.args["http"], HTTPOptions)
    end_tracing = tracing.start(context.args.get("tracing"), name, context.home.logs / SPANS_FILE)
    try:
        uvloop.run(_serve(context, name, options, logging_config))
    finally:
        end_tracing()


def make_front(*given: Any) -> Front:
    """Make the front door, as it is where requests are traced or not."""
    active = tracing.active()
    if active is None:
        return Front(*given)
    # Only here: where nothing is traced, nobody needs it.
    from remora.proxy.traced import TracedFront

    return TracedFront(active, *given)


async def _serve(
    context: ProcessContext, name: str, options: HTTPOptions, logging_config: LoggingConfig
) -> None:
    begin_to_beat(context.beat_file, name)
    client = RoutingClient(context.home, name)
    adopt_client(client)
    client.start()
    access = AccessLog(context.home.logs / f"access-{name}.log", config=logging_config)
    front = make_front(client, options, access, RequestCounters())
    # A successor of a crashed proxy must not answer 404 before it knows the routes: until the
    # first snapshot is there the kernel keeps the connections waiting.
    await client.wait_synced()
    tls = ReloadingContext(options) if options.ssl_certfile else None
    watching = asyncio.create_task(tls.watch()) if tls else None
    grpc = context.args.get("grpc")
    tally = Tally.in_file(
        context.home.tally_file,
        int(context.args.get("index", 0)),
        int(context.args.get("num_proxies", 1)),
    )
    server = HttpServer(front, tally, tls)
    try:
        async with _serving_grpc(grpc, client, access, server.stopping) as count_grpc:
            context.workload.count = lambda: server.num_ongoing() + count_grpc()
            if "http" in context.sockets:
                await server.serve(sockets=[context.sockets["http"]])
            else:
                with server.capture_signals():
                    await server.stopping.wait()
    finally:
        if watching is not None:
            watching.cancel()
        access.close()
        await client.close()


@asynccontextmanager
async def _serving_grpc(
    setup: object,
    client: RoutingClient,
    access: AccessLog,
    stopping: asyncio.Event,
) -> AsyncIterator[Callable[[], int]]:
    """Serve gRPC as well, if that is asked for, until `stopping` and what is under way has ended.

    Gives what counts the latter.
    """
    if setup is None:
        yield int
        return
    # Only here: those who use no gRPC need none of its libraries, and no time to import them.
    from remora.proxy.grpc.server import GrpcServer

    # Bytes in it are written as JSON writes them, which `convert` knows.
    server = GrpcServer(client, msgspec.convert(setup, GrpcSetup), access)
    client.metrics.sources.append(server.families)
    await server.start()
    # gRPC's server makes many objects for each request, and its libraries are many for a collector to
    # look through: without this it takes a tenth of the processor.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)

    async def stop() -> None:
        await stopping.wait()
        await server.stop(_GRPC_GRACE_S)

    ending = asyncio.create_task(stop())
    try:
        yield server.num_ongoing
    finally:
        stopping.set()
        await ending
