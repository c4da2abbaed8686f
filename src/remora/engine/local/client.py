"""`Engine` over the supervisor's socket: the embedded engine as the controller sees it.

Rules: translates between calls and JSON lines and decides nothing. The store is a file of its own
(`store.py`), opened in the controller: the supervisor never touches it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Collection
from typing import Any

from remora.engine.base import (
    Engine,
    EngineEvent,
    Node,
    NodeJoined,
    ProcessExited,
    ProcessPreparing,
    ProcessSpec,
    ProcessStarted,
    SystemProcess,
)
from remora.engine.local.environments import Environments, Prepared
from remora.engine.local.protocol import MAX_LINE_BYTES, Message, encode
from remora.engine.local.resources import Machine, this_machine
from remora.engine.local.store import Store
from remora.errors import EngineError
from remora.home import Home
from remora.options.resources import AS_FOUND, MachineOptions, RuntimeEnv
from remora.types import LOCAL_NODE, Seconds


class LocalEngine(Engine):
    """The embedded engine. One event loop, no thread.

    Guarantees: commands reach the supervisor in the order in which they were given.
    """

    has_fixed_nodes = True

    def __init__(self, home: Home, machine: MachineOptions = AS_FOUND) -> None:
        """Make an engine; `connect` reaches its supervisor.

        Args:
            home: of the instance.
            machine: what this machine is said to have.
        """
        self._home = home
        self._declared = machine
        self._found: Machine | None = None
        self._environments = Environments(home)
        #: Processes whose environment is being built.
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._store_file: Store | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._numbers = itertools.count(1)

    async def connect(self) -> None:
        """Reach the supervisor and open the store."""
        path = self._home.supervisor_socket
        try:
            reader, self._writer = await asyncio.open_unix_connection(
                str(path), limit=MAX_LINE_BYTES
            )
        except OSError as error:
            raise EngineError(
                f"No supervisor answers at {path} ({error.strerror or error}). Is an instance "
                f"running in {self._home.root}? `remora start` starts one."
            ) from None
        self._reading = asyncio.create_task(self._read(reader), name="engine events")
        await self._send({"op": "connect"})

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError):
            # Cut off, or no supervisor of ours: for the caller the same as its end.
            pass
        finally:
            self._events.put_nowait(None)
            for waiting in self._replies.values():
                if not waiting.done():
                    waiting.set_exception(self._lost())

    def _take(self, message: Message) -> None:
        if "reply" in message:
            waiting = self._replies.get(message["reply"])
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            return
        self._events.put_nowait(self._event(message))

    async def events(self) -> AsyncIterator[EngineEvent]:
        """Give every event once; one reader at a time."""
        while (event := await self._events.get()) is not None:
            yield event
        # For a reader that asks again.
        self._events.put_nowait(None)

    async def start_process(self, spec: ProcessSpec) -> None:
        """Ask the supervisor for a process.

        Raises:
            EngineError: the supervisor is gone, or the description is too large.
        """
        if not spec.runtime_env:
            await self._start(spec, Prepared())
            return
        task = asyncio.create_task(self._prepare(spec), name=f"prepare {spec.process_id}")
        self._preparing[spec.process_id] = task
        task.add_done_callback(lambda _: self._preparing.pop(spec.process_id, None))

    async def _prepare(self, spec: ProcessSpec) -> None:
        """Build what a process needs, and start it; whatever comes of it is an event."""
        process_id = spec.process_id

        def tell(what: str) -> None:
            self._events.put_nowait(ProcessPreparing(process_id, what))

        try:
            prepared = await self._environments.prepare(process_id, spec.runtime_env, tell)
            await self._start(spec, prepared)
        # OSError: no builder can be started. Nobody else waits for this task.
        except (EngineError, OSError) as error:
            self._environments.let_go(process_id)
            self._events.put_nowait(
                ProcessExited(process_id, f"could not start: {error}", expected=False)
            )
        except asyncio.CancelledError:
            self._environments.let_go(process_id)
            raise

    async def _start(self, spec: ProcessSpec, prepared: Prepared) -> None:
        await self._send(
            {
                "op": "start",
                "id": spec.process_id,
                "entrypoint": spec.entrypoint,
                "title": spec.title,
                "args": dict(spec.args),
                "env": self._machine().environment(spec.holds, spec.env),
                "preload": list(spec.preload),
                "python": prepared.python,
                "sys_path": list(prepared.sys_path),
                "cwd": prepared.cwd,
                "pieces": list(prepared.pieces),
                "shared": _shared(spec, prepared),
            }
        )

    def _ends_preparing(self, process_id: str) -> bool:
        """End a process that has none yet; False: it has one, or never was."""
        task = self._preparing.pop(process_id, None)
        if task is None or task.done():
            return False
        task.cancel()
        self._events.put_nowait(
            ProcessExited(process_id, "stopped before it was started", expected=True)
        )
        return True

    async def stop_process(self, process_id: str, timeout_s: Seconds) -> None:
        """Pass the order on."""
        if not self._ends_preparing(process_id):
            await self._send({"op": "stop", "id": process_id, "timeout_s": timeout_s})

    async def kill_process(self, process_id: str) -> None:
        """Pass the order on."""
        if not self._ends_preparing(process_id):
            await self._send({"op": "kill", "id": process_id})

    def sweep(self, needed: Collection[RuntimeEnv]) -> None:
        """Remove pieces of environments, in a process of its own."""
        self._environments.sweep(needed)

    async def system_processes(self) -> list[SystemProcess]:
        """Ask the supervisor."""
        number = next(self._numbers)
        waiting = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"op": "processes", "seq": number})
            reply = await waiting
        finally:
            del self._replies[number]
        return [
            SystemProcess(p["name"], p["pid"], p["restarts"], crashes=p.get("crashes", 0))
            for p in reply["processes"]
        ]

    async def shutdown(self) -> None:
        """Pass the order on; a supervisor that is gone needs none."""
        try:
            await self._send({"op": "shutdown"})
        except EngineError:
            pass

    async def get(self, key: str) -> bytes | None:
        """Read from the store."""
        return self._store().get(key)

    async def put(self, key: str, value: bytes) -> None:
        """Write to the store."""
        self._store().put(key, value)

    async def delete(self, key: str) -> None:
        """Delete from the store."""
        self._store().delete(key)

    async def keys(self, prefix: str) -> list[str]:
        """List keys of the store."""
        return self._store().keys(prefix)

    def check_store(self) -> None:
        """See that all of the store can be read.

        Raises:
            EngineError: it is damaged.
        """
        self._store().check()

    async def close(self) -> None:
        """Close the connection and the store."""
        for task in list(self._preparing.values()):
            task.cancel()
        await self._environments.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._writer is not None:
            self._writer.close()
            try:
                await self._writer.wait_closed()
            except OSError:
                pass
        if self._store_file is not None:
            self._store_file.close()
            self._store_file = None

    def _store(self) -> Store:
        # Opened by the first that needs it: the first start command does not wait for SQLite.
        if self._store_file is None:
            self._store_file = Store(self._home.database)
        return self._store_file

    async def _send(self, message: Message) -> None:
        if self._writer is None or self._reading is None or self._reading.done():
            raise self._lost()
        line = encode(message)
        if len(line) > MAX_LINE_BYTES:
            raise EngineError(
                f"A command of {len(line)} bytes is too large for the supervisor (at most "
                f"{MAX_LINE_BYTES}): {message['op']} {message.get('id', '')}. Pass large values "
                "in a file instead of env_vars."
            )
        self._writer.write(line)
        try:
            await self._writer.drain()
        except OSError:
            raise self._lost() from None

    def _lost(self) -> EngineError:
        return EngineError(
            f"The supervisor of {self._home.root} is gone, and the instance with it. "
            "Start it again."
        )

    def _machine(self) -> Machine:
        # Looked at once: GPUs are numbered as they were then for as long as replicas hold them.
        if self._found is None:
            self._found = this_machine(self._declared)
        return self._found

    def _event(self, message: dict[str, Any]) -> EngineEvent:
        match message["event"]:
            case "joined":
                machine = self._machine()
                return NodeJoined(Node(LOCAL_NODE, machine.resources, labels=machine.labels))
            case "started":
                self._environments.let_go(message["id"])
                return ProcessStarted(
                    message["id"], message["address"], int(message["pid"]), LOCAL_NODE
                )
            case "preparing":
                return ProcessPreparing(message["id"], message["what"])
            case "exited":
                self._environments.let_go(message["id"])
                return ProcessExited(message["id"], message["reason"], bool(message["expected"]))
            case unknown:
                raise ValueError(f"unknown event {unknown!r}")


def _shared(spec: ProcessSpec, prepared: Prepared) -> Message | None:
    """Say what a process has in common with others; one with its own interpreter has nothing."""
    if spec.shared is None or prepared.python:
        return None
    return {
        "names": list(spec.shared.names),
        "sys_path": [*prepared.sys_path, *spec.shared.sys_path],
        "cwd": prepared.cwd or spec.shared.cwd,
        "version": spec.shared.version,
    }
