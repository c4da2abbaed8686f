"""The seam between Remora and what runs its processes.

The controller talks to an `Engine` in these words and cannot tell which one runs. The
embedded engine (`engine/local`), Ray (`engine/ray`) and `testing.FakeEngine` implement it and
pass the same contract suite.

Rules: at most 20 methods. An engine starts a process by entry-point string
(`package.module:function`) and never imports it. Whatever happens to a process arrives as an
event, also what the caller asked for.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from remora.home import Home
from remora.options.resources import RuntimeEnv
from remora.types import LOCAL_NODE, NodeID, Seconds
from remora.wire.holds import Hold


@dataclass(frozen=True)
class Node:
    """A machine, and what it offers.

    Attributes:
        resources: total amounts by name: `CPU` (cores), `GPU`, `memory` (bytes), custom.
        draining: True: nothing new is placed here.
        labels: what label selectors look at; `ACCELERATOR_LABEL` names the kind of its GPUs.
        host: its address, for people; empty: there is one node.
        role: what is special about it, for people; empty: nothing.
    """

    node_id: NodeID
    resources: Mapping[str, float]
    draining: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    role: str = ""


#: The label that says what kind of GPU a node has, as on Ray.
ACCELERATOR_LABEL = "ray.io/accelerator-type"
#: The environment variable that tells a process which GPUs it may use.
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Shared:
    """What the processes of a deployment load once and share the memory of.

    Attributes:
        names: `module`, or `module:function` that is called and whose result is kept.
        version: of the code that they are part of: with another one they are loaded anew.
        sys_path: put in front of `sys.path` to import them.
        cwd: working directory while they are loaded; empty: the instance's.
    """

    names: tuple[str, ...]
    version: str = ""
    sys_path: tuple[str, ...] = ()
    cwd: str = ""


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start.

    Attributes:
        process_id: chosen by the caller, never used twice (a replica's id).
        entrypoint: `package.module:function`; called with a `ProcessContext`.
        title: what `ps` shows.
        args: JSON values for the entry point.
        env: environment variables on top of the instance's own.
        node_id: where.
        preload: modules worth having imported before the process starts.
        holds: what the caller has reserved for it: it counts, and the engine need not. The first
            is on `node_id`; further ones are the other bundles of its placement group. An engine
            that restricts a process to its GPUs does so by these, unless `env` does already.
        strategy: how the bundles of that group were to lie, as `options.resources.STRATEGIES`.
        pinned: its place follows from what was asked for (labels, a limit for each node, a gang):
            an engine that finds it taken waits there, and does not start the process elsewhere.
        runtime_env: packages and folders of its own. An engine that has to build them first says
            so (`ProcessPreparing`), keeps what it built, and starts the process with the
            interpreter of that environment.
        shared: what it has in common with others. Only worth memory and time: a process whose
            engine, or whose `runtime_env`, does not allow it loads everything itself.
    """

    process_id: str
    entrypoint: str
    title: str
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    node_id: NodeID = NodeID("local")
    preload: tuple[str, ...] = ()
    holds: tuple[Hold, ...] = ()
    strategy: str = "PACK"
    pinned: bool = False
    runtime_env: RuntimeEnv = field(default_factory=RuntimeEnv)
    shared: Shared | None = None


@dataclass(frozen=True)
class Missing:
    """What a process, or processes that start together, would take, and is not free.

    Attributes:
        bundles: amounts by name; several are those of a placement group or a gang.
        selectors: what the labels of the nodes must be, for each bundle.
        strategy: as `ProcessSpec.strategy`.
    """

    bundles: tuple[Mapping[str, float], ...]
    selectors: tuple[Mapping[str, str], ...]
    strategy: str = "PACK"


class Workload:
    """Lets an engine ask a process how much it has under way.

    Attributes:
        count: requests under way; called from any thread, and does not wait.
    """

    count: Callable[[], int]

    def __init__(self) -> None:
        # Nothing, until the entry point says otherwise.
        self.count = int

    def num_ongoing(self) -> int:
        """Ask the process."""
        return self.count()


@dataclass(frozen=True)
class ProcessContext:
    """What an entry point is called with, inside the new process.

    Attributes:
        sockets: listening sockets by name: a replica has `wire`, the controller `control`,
            a proxy `http`. Where there are several nodes, `wire_tcp` and `control_tcp` are for
            peers from other nodes.
        address: where others reach `wire` or `control`.
        sys_path: folders of its `runtime_env`, to be in front of everything else.
        cwd: working directory of its `runtime_env`; empty: it has none.
        token: what a peer on a TCP socket must present.
        keeps_output: the engine keeps, and shows, what the process writes to its descriptors.
        notes: what the engine has to say of this start; the first lines of its log.
        workload: where a proxy says how much it has under way.
        beat_file: what a process that runs no code of users touches while its loop turns; None:
            nobody looks.
    """

    process_id: str
    home: Home
    args: Mapping[str, Any]
    sockets: Mapping[str, socket.socket]
    address: str
    sys_path: tuple[str, ...] = ()
    cwd: str = ""
    token: str = ""
    keeps_output: bool = False
    notes: tuple[str, ...] = ()
    workload: Workload = field(default_factory=Workload)
    beat_file: Path | None = None


@dataclass(frozen=True)
class ProcessStarted:
    """The process exists and its address takes connections."""

    process_id: str
    address: str
    pid: int
    node_id: NodeID


@dataclass(frozen=True)
class ProcessPreparing:
    """The engine is at work before there is a process, for as long as it takes.

    It builds an environment, pulls an image, waits for a node. `ProcessStarted` or
    `ProcessExited` follows, however late.

    Attributes:
        what: for people: `installs 3 packages; see …`.
    """

    process_id: str
    what: str


@dataclass(frozen=True)
class ProcessExited:
    """The process is gone, for whatever reason; the last event of its id.

    Attributes:
        reason: for people: `exit status 1`, `killed by SIGKILL`, `could not start: …`.
        expected: True: it was asked to stop, or exited with status 0.
        refused: it could not start on its node, which is at fault and takes no more (`NodeRefused` came
            before): elsewhere it may.
    """

    process_id: str
    reason: str
    expected: bool
    refused: bool = False


@dataclass(frozen=True)
class NodeJoined:
    """A node can take processes."""

    node: Node


@dataclass(frozen=True)
class NodeRefused:
    """A node takes no new processes for now; what is there stays. `NodeJoined` ends that.

    Attributes:
        reason: for people, without a full stop.
        is_joining: nothing is wrong: it is being made ready.
    """

    node: Node
    reason: str
    is_joining: bool = False


@dataclass(frozen=True)
class NodeDraining:
    """A node goes away soon."""

    node_id: NodeID


@dataclass(frozen=True)
class NodeLost:
    """A node is gone, its processes with it (their exits are reported as well)."""

    node_id: NodeID


@dataclass(frozen=True)
class DoorsClosing:
    """The front doors of a node are about to go, because no process of the caller's is there.

    The node stays and takes processes, which open them again.
    """

    node_id: NodeID


@dataclass(frozen=True)
class DoorsOpened:
    """They stay after all, or have come again."""

    node_id: NodeID


EngineEvent = (
    ProcessStarted
    | ProcessPreparing
    | ProcessExited
    | NodeJoined
    | NodeRefused
    | NodeDraining
    | NodeLost
    | DoorsClosing
    | DoorsOpened
)


@dataclass(frozen=True)
class SystemProcess:
    """A process of the instance that is no replica: proxy, controller, supervisor.

    Attributes:
        node_id: where it runs.
        crashes: how often it has ended in a row by now, each time soon after its start.
        trouble: what is wrong with it or its node, for people; no full stop. Empty: nothing.
    """

    name: str
    pid: int
    restarts: int
    node_id: NodeID = LOCAL_NODE
    crashes: int = 0
    trouble: str = ""


class Engine(ABC):
    """Runs processes and reports what becomes of them.

    Attributes:
        has_fixed_nodes: no node will ever join: what the nodes of now cannot hold is refused.
        default_resources: what a replica takes whose deployment does not say.
        node_id: the node that the caller runs on, once it is connected.
    """

    has_fixed_nodes: bool = False
    default_resources: Mapping[str, float] = MappingProxyType({})
    node_id: NodeID = LOCAL_NODE

    @abstractmethod
    async def connect(self) -> None:
        """Reach the engine. Events of processes that already run come first.

        Raises:
            EngineError: the engine cannot be reached.
        """

    @abstractmethod
    def events(self) -> AsyncIterator[EngineEvent]:
        """Everything that happens, in order, for as long as the engine lives.

        After `connect` it begins with one `NodeJoined` for every node and one
        `ProcessStarted` for every process that is alive: that is how a restarted controller
        finds its replicas. Ends when the engine goes away.
        """

    @abstractmethod
    async def start_process(self, spec: ProcessSpec) -> None:
        """Begin to start a process. `ProcessStarted` or `ProcessExited` follows."""

    @abstractmethod
    async def stop_process(self, process_id: str, timeout_s: Seconds) -> None:
        """Ask a process to end (SIGTERM) and kill it and what it spawned after `timeout_s`.

        `ProcessExited` follows. Asked twice, the earlier deadline holds. An unknown id is no error.
        """

    @abstractmethod
    async def kill_process(self, process_id: str) -> None:
        """End a process and what it spawned at once. An unknown id is no error."""

    def seek(self, missing: Sequence[Missing]) -> None:  # noqa: B027
        """Hear what finds no room, all of it, whenever that may have changed.

        An engine that can get more nodes, or has somebody who can, asks for them.
        """

    def sweep(self, needed: Collection[RuntimeEnv]) -> None:  # noqa: B027
        """Hear which environments may be needed, all of them, every few minutes.

        An engine that keeps what it built for processes may remove the rest, except what a process
        that it runs was started with.
        """

    @abstractmethod
    async def system_processes(self) -> list[SystemProcess]:
        """The processes of the instance that are not the caller's, for status reports.

        Guarantees: events of everything that was alive at `connect` come before this answer. A
        restarted controller takes it for the end of the inventory.
        """

    @abstractmethod
    async def shutdown(self) -> None:
        """End the whole instance, the caller included. Returns once that is under way."""

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """Read a value of the durable store; None: no such key."""

    @abstractmethod
    async def put(self, key: str, value: bytes) -> None:
        """Write a value durably: it survives every process.

        Raises:
            EngineError: it could not be written (a full disk); the old value stays.
        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Forget a key; an unknown one is no error."""

    @abstractmethod
    async def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, sorted."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the engine; processes stay."""
