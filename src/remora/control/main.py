"""The controller's process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import msgspec
import uvloop

from remora.control.admin import Admin
from remora.control.controller import Controller
from remora.control.planning import process_bytes
from remora.engine.base import Engine, ProcessContext
from remora.errors import ConfigError, EngineError
from remora.observe.heartbeat import begin_to_beat
from remora.observe.logs import log_of_system_process
from remora.options.resources import MachineOptions
from remora.transport.control import serve_control

_log = logging.getLogger("remora.controller")


def main(context: ProcessContext) -> None:
    """Entry point of the controller's process."""
    log_of_system_process(context, "controller", "controller")
    uvloop.run(_serve(context))


async def _serve(context: ProcessContext) -> None:
    begin_to_beat(context.beat_file, "controller")
    engine = await _engine(context)
    # Four characters tell the replicas of this state from those of a state that was lost.
    controller = Controller(
        engine,
        salt=os.urandom(2).hex(),
        bound=bool(context.args.get("bound", False)),
        home=context.home,
        logging=context.args.get("logging"),
        tracing=context.args.get("tracing"),
    )
    admin = Admin(
        controller,
        home=str(context.home.root),
        http_url=str(context.args.get("http_url", "")),
        grpc_address=str(context.args.get("grpc_address", "")),
        admin_url=str(context.args.get("admin_url", "")),
        measure=process_bytes,
    )
    servers = [await serve_control(context.sockets["control"], admin.handlers)]
    if (for_others := context.sockets.get("control_tcp")) is not None:
        servers.append(await serve_control(for_others, admin.handlers, context.token))
    running = asyncio.create_task(controller.run(), name="controller")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
        if not controller.state.shutting_down:
            _log.warning("The engine has gone away; this controller ends.")
    except asyncio.CancelledError:
        _log.debug("Told to end.")
    finally:
        for server in servers:
            server.close()
        await engine.close()


async def _engine(context: ProcessContext) -> Engine:
    """Make the engine that runs this instance, with a store that can be read.

    Raises:
        ConfigError: there is no such engine.
        EngineError: its store cannot be read, and cannot be put aside.
    """
    home = context.home
    kind = str(context.args.get("engine", "local"))
    if kind == "ray":
        from remora.engine.ray.engine import RayEngine

        return RayEngine(str(context.args["namespace"]))
    if kind != "local":
        raise ConfigError("engine", kind, "'local' or 'ray'")
    from remora.engine.local.client import LocalEngine

    machine = msgspec.convert(context.args.get("machine", {}), MachineOptions)
    engine = LocalEngine(home, machine)
    try:
        engine.check_store()
    except EngineError as error:
        aside = _put_aside(home.database)
        _log.warning(
            "%s It is kept as %s. Applications of which replicas run are put together from those; "
            "deploy the others again.",
            error,
            aside,
        )
        await engine.close()
        engine = LocalEngine(home, machine)
        engine.check_store()
    return engine


def _put_aside(database: Path) -> Path:
    """Move an unreadable database out of the way, with its journals."""
    aside = database.with_name(f"{database.name}.unreadable-{int(time.time())}")
    for suffix in ("", "-wal", "-shm"):
        found = database.with_name(database.name + suffix)
        if found.exists():
            found.rename(aside.with_name(aside.name + suffix))
    return aside
