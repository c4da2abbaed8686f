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
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from remora.home import Home
from remora.types import NodeID, Seconds


@dataclass(frozen=True)
class Node:
    """A machine, and what it offers.

    Attributes:
        resources: total amounts by name: `CPU` (cores), `GPU`, `memory` (bytes), custom.
        draining: True: nothing new is placed here.
    """

    node_id: NodeID
    resources: Mapping[str, float]
    draining: bool = False


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
    """

    process_id: str
    entrypoint: str
    title: str
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    node_id: NodeID = NodeID("local")
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProcessContext:
    """What an entry point is called with, inside the new process.

    Attributes:
        sockets: listening sockets by name: a replica has `wire`, the controller `control`,
            a proxy `http`.
        address: where others reach `wire` or `control`.
    """

    process_id: str
    home: Home
    args: Mapping[str, Any]
    sockets: Mapping[str, socket.socket]
    address: str


@dataclass(frozen=True)
class ProcessStarted:
    """The process exists and its address takes connections."""

    process_id: str
    address: str
    pid: int
    node_id: NodeID


@dataclass(frozen=True)
class ProcessExited:
    """The process is gone, for whatever reason; the last event of its id.

    Attributes:
        reason: for people: `exit status 1`, `killed by SIGKILL`, `could not start: …`.
        expected: True: it was asked to stop, or exited with status 0.
    """

    process_id: str
    reason: str
    expected: bool


@dataclass(frozen=True)
class NodeJoined:
    """A node can take processes."""

    node: Node


@dataclass(frozen=True)
class NodeDraining:
    """A node goes away soon."""

    node_id: NodeID


@dataclass(frozen=True)
class NodeLost:
    """A node is gone, its processes with it (their exits are reported as well)."""

    node_id: NodeID


EngineEvent = ProcessStarted | ProcessExited | NodeJoined | NodeDraining | NodeLost


@dataclass(frozen=True)
class SystemProcess:
    """A process of the instance that is no replica: proxy, controller, supervisor."""

    name: str
    pid: int
    restarts: int


class Engine(ABC):
    """Runs processes and reports what becomes of them."""

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

        `ProcessExited` follows. An unknown id is no error.
        """

    @abstractmethod
    async def kill_process(self, process_id: str) -> None:
        """End a process and what it spawned at once. An unknown id is no error."""

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
