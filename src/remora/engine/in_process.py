"""An engine whose processes are tasks on one loop: a whole instance in one process, for tests.

What a process would run is handed in as a coroutine function, so that nothing here imports it.
Everything above sees what it sees of any engine: addresses that take connections, and events.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from remora.engine.base import (
    Node,
    ProcessContext,
    ProcessExited,
    ProcessSpec,
    ProcessStarted,
    SystemProcess,
)
from remora.engine.in_memory import InMemoryEngine
from remora.errors import EngineError
from remora.home import Home
from remora.types import LOCAL_NODE, Seconds

_log = logging.getLogger("remora.engine")

#: Runs what a process would run, until it is cancelled or has ended by itself.
Serve = Callable[[ProcessContext], Awaitable[None]]
_BACKLOG = 1024


@dataclass
class _Process:
    started: ProcessStarted
    task: asyncio.Task[None]
    path: Path
    listener: socket.socket
    #: It was asked to end, so its end is expected.
    is_ending: bool = False


class InProcessEngine(InMemoryEngine):
    """Runs each process of an instance as a task."""

    def __init__(self, home: Home, serve: Serve) -> None:
        """Make an engine on the running loop.

        Args:
            home: holds the sockets; its folders exist.
            serve: what every process runs.
        """
        super().__init__([Node(LOCAL_NODE, {"CPU": float(os.cpu_count() or 1)})])
        self._home = home
        self._serve = serve
        self._processes: dict[str, _Process] = {}
        self._num_started = 0

    def running(self) -> list[ProcessStarted]:
        """What is alive."""
        return [process.started for process in self._processes.values()]

    async def start_process(self, spec: ProcessSpec) -> None:
        """Begin to serve; the socket takes connections from now on."""
        self._num_started += 1
        path = self._home.sockets / f"{self._num_started}.sock"
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(os.fspath(path))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise EngineError(f"No socket for {spec.process_id}: {error}") from error
        address = f"unix:{path}"
        context = ProcessContext(
            spec.process_id, self._home, spec.args, {"wire": listener}, address
        )
        started = ProcessStarted(spec.process_id, address, os.getpid(), spec.node_id)
        task = asyncio.get_running_loop().create_task(self._run(context), name=spec.process_id)
        self._processes[spec.process_id] = _Process(started, task, path, listener)
        task.add_done_callback(lambda task: self._on_end(spec.process_id, task))
        self.tell(started)

    async def _run(self, context: ProcessContext) -> None:
        await self._serve(context)

    def _on_end(self, process_id: str, task: asyncio.Task[None]) -> None:
        process = self._processes.pop(process_id)
        process.path.unlink(missing_ok=True)
        # One that was killed before its first step has not taken it over.
        process.listener.close()
        if task.cancelled():
            reason, expected = "it was cancelled", process.is_ending
        elif (error := task.exception()) is not None:
            reason, expected = f"it failed: {error!r}", process.is_ending
            _log.error("%s failed", process_id, exc_info=error)
        else:
            reason, expected = "it has ended", True
        self.tell(ProcessExited(process_id, reason, expected))

    async def stop_process(self, process_id: str, timeout_s: Seconds) -> None:
        """End a process. There is no gentler way than the one that the controller has tried."""
        del timeout_s
        await self.kill_process(process_id)

    async def kill_process(self, process_id: str) -> None:
        """End a process at once."""
        process = self._processes.get(process_id)
        if process is not None:
            process.is_ending = True
            process.task.cancel()

    def own_processes(self) -> list[SystemProcess]:
        """One process is everything."""
        return [SystemProcess("supervisor", os.getpid(), 0), SystemProcess("controller", 0, 0)]

    async def shutdown(self) -> None:
        """End everything."""
        tasks = [process.task for process in self._processes.values()]
        for process_id in list(self._processes):
            await self.kill_process(process_id)
        if tasks:
            await asyncio.wait(tasks)
        self.end_events()
