"""How an instance on Ray is set up, as every process of it reads it from Ray's store."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from remora.config import ProxyLocation
from remora.core.labels import zone_of
from remora.engine.ray import cluster as rays
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.crashes import PREFIX as CRASHES
from remora.engine.ray.crashes import Crashes
from remora.engine.ray.staffing import MIN_CLOSING_S, Phase, Staff
from remora.errors import EngineError
from remora.home import Home
from remora.options.node import PLAIN, NodeOptions
from remora.transport.membership import Membership
from remora.types import Seconds

_KEY = "instance"
#: Its presence means that the instance ends: what ends now is not to come back.
ENDING = "ending"
#: Address of the controller.
CONTROLLER_ADDRESS = "controller"
#: A worker of Ray is there in a second; on a machine under load, in many.
START_LIMIT_S: Seconds = 60.0
#: An agent is up within a tenth of a second of its worker.
BETWEEN_LOOKS_S: Seconds = 0.02


class InstanceSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while an instance runs."""

    #: State folder on the node where it was started.
    home: str
    #: That node.
    node_id: str
    #: The cluster is one that this instance has started for itself: no node will join.
    has_fixed_nodes: bool = False
    #: How long the front doors of a node without replicas close before they go, at least.
    min_closing_s: Seconds = MIN_CLOSING_S
    #: What connections between nodes present.
    token: str
    #: The user's `HTTPOptions` as a dict.
    http: dict[str, Any]
    #: On which nodes proxies run.
    proxy_location: str = "EveryNode"
    #: The setup for gRPC as JSON knows it; None: no gRPC.
    grpc: dict[str, Any] | None = None
    #: The user's `LoggingConfig` as a dict; None: the defaults.
    logging: dict[str, Any] | None = None
    #: The user's `TracingConfig` as a dict; None: nothing is traced.
    tracing: dict[str, Any] | None = None
    #: Of connections between nodes.
    node: NodeOptions = PLAIN
    #: The user's `AdminOptions` as a dict; empty: the REST API has only its Unix sockets.
    admin: dict[str, Any] = {}
    #: What the REST API asks for: the one in the state folder; empty: only this machine reaches it.
    admin_token: str = ""
    #: Ray's id of the program that the instance ends with; empty: it stays.
    bound_job: str = ""
    controller: str = "remora.control.main:main"
    proxy: str = "remora.proxy.main:main"

    def save(self, cluster: Cluster) -> None:
        """Leave it for the processes of the instance."""
        cluster.put(_KEY, msgspec.json.encode(self))

    def membership(self, node: RayNode) -> Membership:
        """What a process on a node knows of itself, and proves itself with. Pure."""
        return Membership(node.node_id, self.token, self.node, zone_of(node.labels))

    def has_proxies(self, *, is_head: bool) -> bool:
        """Whether a node has proxies. Pure."""
        if self.http.get("host") is None and self.grpc is None:
            return False
        location = ProxyLocation(self.proxy_location)
        if location is ProxyLocation.HeadOnly:
            return is_head
        return location is ProxyLocation.EveryNode

    def home_on(self, node_id: str, session: str) -> Home:
        """The state folder of a node: the user's where the instance was started.

        Elsewhere one below the folder of the Ray session, which exists on every node and goes
        with it. Pure.
        """
        if node_id == self.node_id:
            return Home(Path(self.home))
        return Home(Path(session) / f"remora-{node_id[:12]}")


def find_setup(cluster: Cluster) -> InstanceSetup | None:
    """Read the setup of the instance in a cluster; None: there is none."""
    data = cluster.get(_KEY)
    return None if data is None else msgspec.json.decode(data, type=InstanceSetup)


def require_setup(cluster: Cluster) -> InstanceSetup:
    """Read the setup of the instance in a cluster.

    Raises:
        EngineError: there is none.
    """
    found = find_setup(cluster)
    if found is None:
        raise EngineError(
            f"No instance of Remora is set up in the Ray namespace {cluster.namespace!r}. "
            "`remora start --engine ray` starts one."
        )
    return found


def forget(cluster: Cluster, *, spare: Collection[str] = ()) -> None:
    """Remove what belongs to one life of an instance; its applications stay in the store.

    Args:
        cluster: of the instance.
        spare: keys that stay.

    Raises:
        EngineError: Ray's head does not answer.
    """
    prefixes = (
        *("process/", "node/", "staff/", "failure/", CRASHES),
        *(ENDING, CONTROLLER_ADDRESS, _KEY),
    )
    for prefix in prefixes:
        for key in cluster.keys(prefix):
            if key not in spare:
                cluster.delete(key)


def failure_key(process_id: str) -> str:
    """Where a process leaves why it could not start. Pure."""
    return f"failure/{process_id}"


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process that came up."""

    process_id: str
    address: str
    pid: int
    node_id: str
    #: It has a placement group, which goes with it.
    has_group: bool = False

    @staticmethod
    def key(process_id: str) -> str:
        """Where it is stored. Pure."""
        return f"process/{process_id}"


class NodeRecord(msgspec.Struct, frozen=True):
    """A node that takes processes: its agent is up."""

    node_id: str
    #: Where the agent takes commands.
    address: str
    #: Of its front doors; empty without.
    http_url: str = ""
    grpc_address: str = ""
    #: Of the REST API; empty: there is only the Unix socket.
    admin_url: str = ""
    #: Why it has no front doors although it is to have some, for people; empty: it has them.
    no_doors: str = ""

    def save(self, cluster: Cluster) -> None:
        """Tell that the agent is up."""
        cluster.put(NodeRecord.key(self.node_id), msgspec.msgpack.encode(self))

    @staticmethod
    def key(node_id: str) -> str:
        """Where it is stored. Pure."""
        return f"node/{node_id}"


def staff_key(node_id: str) -> str:
    """Where it is stored how far the agent and the proxies of a node are. Pure."""
    return f"staff/{node_id}"


def find_staff(cluster: Cluster, node_id: str) -> Staff | None:
    """Read how far the agent and the proxies of a node are; None: it never had any. Blocks."""
    data = cluster.get(staff_key(node_id))
    return None if data is None else msgspec.msgpack.decode(data, type=Staff)


def is_leaving(cluster: Cluster, node_id: str) -> bool:
    """The agent and the proxies of a node are on their way out, and not to come back. Blocks."""
    staff = find_staff(cluster, node_id)
    return staff is not None and staff.phase is Phase.LEAVING


def read_records(cluster: Cluster) -> list[ProcessRecord]:
    """Read what processes came up. Blocks."""
    found = [cluster.get(key) for key in cluster.keys("process/")]
    return [msgspec.msgpack.decode(data, type=ProcessRecord) for data in found if data is not None]


def read_crashes(cluster: Cluster, now_unix_s: float) -> dict[str, int]:
    """Read how often permanent processes have ended in a row by now, by their names. Blocks."""
    found = {key.removeprefix(CRASHES): cluster.get(key) for key in cluster.keys(CRASHES)}
    crashes = {
        name: msgspec.msgpack.decode(data, type=Crashes) for name, data in found.items() if data
    }
    return {name: each.lately(now_unix_s) for name, each in crashes.items()}


def find_node(cluster: Cluster, node_id: str) -> NodeRecord | None:
    """Read what the agent of a node says; None: it takes no processes, or not any more. Blocks."""
    data = cluster.get(NodeRecord.key(node_id))
    return None if data is None else msgspec.msgpack.decode(data, type=NodeRecord)


def await_node(cluster: Cluster, node_id: str) -> NodeRecord | None:
    """Wait for the agent of a node; None: the node is gone. Blocks.

    Raises:
        EngineError: it does not come up, or Ray's head does not answer.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while (found := find_node(cluster, node_id)) is None:
        if node_id not in {node.node_id for node in rays.nodes()}:
            return None
        if time.monotonic() >= deadline:
            raise EngineError(
                f"The agent of node {node_id[:12]} is not up after {START_LIMIT_S:g} s. Is the node "
                "very busy? `ray status` shows what waits."
            )
        time.sleep(BETWEEN_LOOKS_S)
    return found
