"""The proxy's process: uvicorn as a library, on sockets that the supervisor holds."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import uvloop

from remora.config import HTTPOptions
from remora.engine.base import ProcessContext
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.observe.logs import configure_logging
from remora.proxy.front import Front
from remora.proxy.server import HttpServer
from remora.router.client import RoutingClient
from remora.router.process import adopt_client, use_instance
from remora.transport.tls import ReloadingContext

_log = logging.getLogger("remora.proxy")


def main(context: ProcessContext) -> None:
    """Entry point of a proxy's process."""
    name = str(context.args.get("name", "proxy"))
    configure_logging(context.home, name)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    use_instance(context.home, name)
    options = msgspec.convert(context.args["http"], HTTPOptions)
    uvloop.run(_serve(context, name, options))


async def _serve(context: ProcessContext, name: str, options: HTTPOptions) -> None:
    client = RoutingClient(context.home, name)
    adopt_client(client)
    client.start()
    access = AccessLog(context.home.logs / f"access-{name}.log")
    front = Front(client, options, access, RequestCounters())
    # A successor of a crashed proxy must not answer 404 before it knows the routes: until the
    # first snapshot is there the kernel keeps the connections waiting.
    await client.wait_synced()
    tls = ReloadingContext(options) if options.ssl_certfile else None
    watching = asyncio.create_task(tls.watch()) if tls else None
    server = HttpServer(front, tls.context if tls else None)
    try:
        await server.serve(sockets=[context.sockets["http"]])
    finally:
        if watching is not None:
            watching.cancel()
        access.close()
        await client.close()
