"""The routing snapshot: all that a router needs to know, and the difference between two.

The controller publishes it, every router holds a copy. A subscriber gets the whole once and
differences afterwards; `patch(a, diff(a, b)) == b`.

Rules: pure values. Only RUNNING replicas are in it.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from remora.config import PolicySetup
from remora.types import LOCAL_NODE, DeploymentID, NodeID, ReplicaID

K = TypeVar("K")
V = TypeVar("V")


class ReplicaRoute(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where one running replica listens (`unix:<path>` or `tcp:<host>:<port>`)."""

    replica_id: ReplicaID
    address: str
    #: Where it runs.
    node_id: NodeID = LOCAL_NODE
    #: Zone of that node; empty: unknown.
    availability_zone: str = ""


class DeploymentRoute(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a router needs to know of one deployment."""

    #: In no particular order.
    replicas: tuple[ReplicaRoute, ...]
    #: Requests that one replica works on at a time, at most.
    max_ongoing_requests: int
    #: Requests that may wait; -1: no limit.
    max_queued_requests: int = -1
    #: Every request may run twice.
    idempotent: bool = False
    #: HTTP status of a refusal for a full queue (503 or 429).
    backpressure_status: int = 503
    #: Value of its `Retry-After`; None: worked out by the router.
    backpressure_retry_after_s: float | None = None
    #: How a replica is chosen.
    policy: PolicySetup = PolicySetup()
    #: Why no replica will come for now (a failed deployment); empty: one is there or coming.
    unavailable: str = ""


class AppRoute(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How requests enter an application."""

    name: str
    #: None: not reachable over HTTP.
    route_prefix: str | None
    #: Name of the ingress deployment.
    ingress: str


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """Everything that routers know, at one version."""

    #: Grows with every publication of one controller process.
    version: int = 0
    apps: dict[str, AppRoute] = {}
    deployments: dict[DeploymentID, DeploymentRoute] = {}
    #: Prefixes of applications that are being deleted, each with its application's name.
    leaving: dict[str, str] = {}
    #: The instance is shutting down: nothing that is gone comes back.
    ending: bool = False
    #: Nodes whose front doors are about to go, with the node or alone: load balancers are to leave.
    draining: tuple[NodeID, ...] = ()


class SnapshotDiff(msgspec.Struct, array_like=True, frozen=True):
    """What leads from one snapshot to the next."""

    version: int
    #: True: forget everything known before (the first message of a subscription).
    reset: bool = False
    apps: dict[str, AppRoute] = {}
    gone_apps: tuple[str, ...] = ()
    deployments: dict[DeploymentID, DeploymentRoute] = {}
    gone_deployments: tuple[DeploymentID, ...] = ()
    #: All of them each time: they are few, and rarely any.
    leaving: dict[str, str] = {}
    ending: bool = False
    draining: tuple[NodeID, ...] = ()


def diff(old: Snapshot | None, new: Snapshot) -> SnapshotDiff:
    """Say what changed from `old` to `new`; with no `old`, everything.

    Pure. Invariants: `patch(old, diff(old, new)) == new`.
    """
    if old is None:
        return SnapshotDiff(
            new.version,
            reset=True,
            apps=new.apps,
            deployments=new.deployments,
            leaving=new.leaving,
            ending=new.ending,
            draining=new.draining,
        )
    return SnapshotDiff(
        version=new.version,
        apps=_changed(old.apps, new.apps),
        gone_apps=tuple(k for k in old.apps if k not in new.apps),
        deployments=_changed(old.deployments, new.deployments),
        gone_deployments=tuple(k for k in old.deployments if k not in new.deployments),
        leaving=new.leaving,
        ending=new.ending,
        draining=new.draining,
    )


def _changed(old: dict[K, V], new: dict[K, V]) -> dict[K, V]:
    # What did not change is the same object, and there may be thousands.
    return {
        key: value
        for key, value in new.items()
        if (known := old.get(key)) is not value and known != value
    }


def patch(old: Snapshot, change: SnapshotDiff) -> Snapshot:
    """Apply a difference. Pure; `old` is left as it was."""
    apps = {} if change.reset else dict(old.apps)
    deployments = {} if change.reset else dict(old.deployments)
    apps.update(change.apps)
    deployments.update(change.deployments)
    for name in change.gone_apps:
        apps.pop(name, None)
    for deployment in change.gone_deployments:
        deployments.pop(deployment, None)
    return Snapshot(
        change.version, apps, deployments, change.leaving, change.ending, change.draining
    )
