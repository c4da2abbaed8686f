"""The process of the REST API: a server on sockets that are handed to it, until it is told to end."""

from __future__ import annotations

import asyncio

import uvicorn

from remora import __version__
from remora.control.client import ControlClient
from remora.engine.admin_token import is_loopback, token_of
from remora.engine.base import ProcessContext
from remora.observe.heartbeat import begin_to_beat
from remora.observe.logs import log_of_system_process
from remora.rest.app import make_app
from remora.rest.guard import Rules

#: Connections at a time, idle ones too; the server itself turns further ones away, with 503.
_MAX_CONNECTIONS = 512


def main(context: ProcessContext) -> None:
    """Entry point of the process."""
    log_of_system_process(context, "admin", "admin")
    asyncio.run(_serve(context))


async def _serve(context: ProcessContext) -> None:
    begin_to_beat(context.beat_file, "admin")
    app = make_app(
        lambda: ControlClient(context.home),
        dict(context.args.get("options", {})),
        rules_of(context),
        __version__,
    )
    config = uvicorn.Config(
        app,
        lifespan="off",
        # Who asks for a WebSocket is answered as anybody else is.
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    await uvicorn.Server(config).serve(sockets=list(context.sockets.values()))


def rules_of(context: ProcessContext) -> Rules:
    """Say who may use the API.

    Raises:
        InstanceError: the file of its token is empty.
        OSError: that can be neither read nor made.
    """
    host = str(context.args.get("host") or "127.0.0.1")
    if is_loopback(host):
        return Rules(host, "")
    # In a cluster the file is in one state folder, and this process may be on another node.
    return Rules(host, str(context.args.get("token") or "") or token_of(context.home))
