"""The replica's process: one loop, one listening socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal

import uvloop

from remora.engine.base import ProcessContext
from remora.observe import tracing
from remora.observe.logs import ProcessLog, log_of_replica
from remora.observe.tracing import SPANS_FILE
from remora.replica.replica import Replica
from remora.replica.surroundings import OwnProcess, SharedProcess
from remora.router.process import use_instance, use_own_loop
from remora.transport.listener import listen

_log = logging.getLogger("remora.replica")


def main(context: ProcessContext) -> None:
    """Entry point of a replica's process."""
    log = log_of_replica(context)
    use_instance(context.home, context.process_id)
    spans_file = context.home.logs / SPANS_FILE
    end_tracing = tracing.start(context.args.get("tracing"), context.process_id, spans_file)
    try:
        uvloop.run(_serve(context, log))
    finally:
        end_tracing()


async def _serve(context: ProcessContext, log: ProcessLog) -> None:
    use_own_loop(asyncio.get_running_loop())
    stacks = context.home.stacks_file(context.process_id)
    replica = Replica(context.process_id, OwnProcess(context.sys_path, context.cwd, stacks, log))
    servers = [await listen(context.sockets["wire"], replica.accept)]
    if (for_others := context.sockets.get("wire_tcp")) is not None:
        servers.append(await listen(for_others, replica.accept, context.token))
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    told_to_stop = asyncio.create_task(replica.stopped.wait())
    told_to_end = asyncio.create_task(terminated.wait())
    await asyncio.wait((told_to_stop, told_to_end), return_when=asyncio.FIRST_COMPLETED)
    if not replica.stopped.is_set():
        # The engine kills us when this takes longer than it allows.
        await replica.drain()
        await replica.stop()
    told_to_end.cancel()
    # Answers that were written just now leave before the connections close.
    await asyncio.sleep(0)
    for server in servers:
        server.close()


async def serve_in_shared_process(context: ProcessContext) -> None:
    """Run a replica as a task, until it has stopped or the task is cancelled.

    A task that is cancelled is a process that is killed: its connections break off, and nothing
    of the user's runs any more.
    """
    replica = Replica(context.process_id, SharedProcess())
    server = await listen(context.sockets["wire"], replica.accept)
    try:
        await replica.stopped.wait()
        # Answers that were written just now leave before the connections close.
        await asyncio.sleep(0)
    finally:
        server.close()
        replica.cut_off()
