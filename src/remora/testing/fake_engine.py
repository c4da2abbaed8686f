"""An engine in memory: its processes are names, and a test says what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from remora.engine.base import (
    Node,
    NodeDraining,
    NodeJoined,
    NodeLost,
    NodeRefused,
    ProcessExited,
    ProcessSpec,
    ProcessStarted,
    SystemProcess,
)
from remora.engine.in_memory import InMemoryEngine
from remora.errors import EngineError
from remora.types import LOCAL_NODE, NodeID, Seconds


@dataclass
class FakeProcess:
    """A process of a FakeEngine."""

    spec: ProcessSpec
    pid: int
    address: str
    #: It has been reported as started.
    is_up: bool = False
    #: It ignores requests to end; only killing helps.
    is_stubborn: bool = False
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


class FakeEngine(InMemoryEngine):
    """An engine in memory. One event loop.

    Attributes:
        start_delay_s: how long a process takes to come up; may be a function of its description.
        fail_start: a process for which it gives a reason exits with it instead of coming up.
        fail_puts: True: the disk is full.
        is_shut_down: `shutdown` was called.
        controller_restarts: how often the controller was started again; None: there is none, and
            whoever asks takes itself for a later one.
        num_started: how many processes were ever asked for.
    """

    def __init__(self, nodes: list[Node] | None = None) -> None:
        self.start_delay_s: Seconds | Callable[[ProcessSpec], Seconds] = 0.01
        self.fail_start: Callable[[ProcessSpec], str] = lambda _spec: ""
        self.fail_puts = False
        self.is_shut_down = False
        self.controller_restarts: int | None = None
        self.num_started = 0
        self.processes: dict[str, FakeProcess] = {}
        #: Called with the id of every process that is gone.
        self.on_exit: list[Callable[[str], None]] = []
        super().__init__(nodes or [Node(LOCAL_NODE, {"CPU": 8.0, "GPU": 0.0})])
        self._ids: set[str] = set()

    # ------------------------------------------------------------------------ what tests say

    def crash(self, process_id: str, reason: str = "killed by SIGKILL") -> None:
        """Let a process die by itself."""
        self._exit(process_id, reason, expected=False)

    def join_node(self, node: Node) -> None:
        """Add a node."""
        self.nodes[node.node_id] = node
        self.tell(NodeJoined(node))

    def refuse_node(self, node_id: NodeID, reason: str) -> None:
        """Let a node take no processes from now on: those on their way there do not start."""
        self.tell(NodeRefused(self.nodes[node_id], reason))
        for process_id, process in list(self.processes.items()):
            if process.spec.node_id == node_id and not process.is_up:
                self._exit(process_id, f"could not start: {reason}", expected=False, refused=True)

    def drain_node(self, node_id: NodeID) -> None:
        """Announce that a node goes away soon."""
        node = self.nodes[node_id]
        self.nodes[node_id] = Node(node_id, node.resources, draining=True)
        self.tell(NodeDraining(node_id))

    def lose_node(self, node_id: NodeID) -> None:
        """Take a node away with everything on it."""
        del self.nodes[node_id]
        self.tell(NodeLost(node_id))
        for process_id, process in list(self.processes.items()):
            if process.spec.node_id == node_id:
                self._exit(process_id, f"node {node_id} was lost", expected=False)

    # ------------------------------------------------------------------------------- Engine

    def running(self) -> list[ProcessStarted]:
        """What has come up."""
        return [self._started(process) for process in self.processes.values() if process.is_up]

    async def start_process(self, spec: ProcessSpec) -> None:
        """Begin to start a process."""
        if spec.process_id in self._ids:
            raise EngineError(f"The process id {spec.process_id} was used before.")
        self._ids.add(spec.process_id)
        self.num_started += 1
        number = self.num_started
        process = FakeProcess(spec, 10_000 + number, f"unix:/fake/{number}")
        self.processes[spec.process_id] = process
        delay_s = self.start_delay_s
        self._later(
            process,
            delay_s if isinstance(delay_s, (int, float)) else delay_s(spec),
            self._come_up,
            process,
        )

    async def stop_process(self, process_id: str, timeout_s: Seconds) -> None:
        """End a process; a stubborn one after `timeout_s`."""
        process = self.processes.get(process_id)
        if process is None:
            return
        if process.is_stubborn:
            self._later(process, timeout_s, self._exit, process_id, "killed by SIGKILL")
        else:
            self._later(process, 0.0, self._exit, process_id, "exit status 0")

    async def kill_process(self, process_id: str) -> None:
        """End a process at once."""
        self._exit(process_id, "killed by SIGKILL")

    def own_processes(self) -> list[SystemProcess]:
        """A supervisor and a proxy, as an embedded engine has."""
        found = [SystemProcess("supervisor", 1, 0), SystemProcess("proxy-1", 2, 0)]
        if self.controller_restarts is not None:
            found.append(SystemProcess("controller", 3, self.controller_restarts))
        return found

    async def shutdown(self) -> None:
        """End everything."""
        self.is_shut_down = True
        for process_id in list(self.processes):
            self._exit(process_id, "killed by SIGKILL")
        self.end_events()

    async def put(self, key: str, value: bytes) -> None:
        """Write a value, unless the disk is full."""
        if self.fail_puts:
            raise EngineError(f"Cannot write {key}: no space left on device.")
        await super().put(key, value)

    # ----------------------------------------------------------------------------- processes

    def _later(
        self, process: FakeProcess, delay_s: Seconds, what: Callable[..., None], *args: object
    ) -> None:
        loop = asyncio.get_running_loop()
        process.timers.append(loop.call_later(delay_s, what, *args))

    def _started(self, process: FakeProcess) -> ProcessStarted:
        spec = process.spec
        return ProcessStarted(spec.process_id, process.address, process.pid, spec.node_id)

    def _come_up(self, process: FakeProcess) -> None:
        reason = self.fail_start(process.spec)
        if reason:
            self._exit(process.spec.process_id, reason, expected=False)
            return
        process.is_up = True
        self.tell(self._started(process))

    def _exit(
        self, process_id: str, reason: str, expected: bool = True, refused: bool = False
    ) -> None:
        process = self.processes.pop(process_id, None)
        if process is None:
            return
        for timer in process.timers:
            timer.cancel()
        self.tell(ProcessExited(process_id, reason, expected, refused))
        for callback in self.on_exit:
            callback(process_id)
