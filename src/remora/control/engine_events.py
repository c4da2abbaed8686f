"""What an engine says, in the controller's words."""

from __future__ import annotations

from remora.core import events as ev
from remora.engine import base
from remora.types import ReplicaID, is_replica


def from_engine(event: base.EngineEvent) -> ev.AnyEvent | None:
    """Say in the controller's words what the engine said; None: it concerns no replica."""
    match event:
        case base.ProcessStarted(process_id=process_id):
            if not is_replica(process_id):
                return None
            return ev.ProcessStarted(
                replica_id=ReplicaID(process_id),
                address=event.address,
                pid=event.pid,
                node_id=event.node_id,
            )
        case base.ProcessPreparing(process_id=process_id):
            if not is_replica(process_id):
                return None
            return ev.ProcessPreparing(replica_id=ReplicaID(process_id), what=event.what)
        case base.ProcessExited(process_id=process_id):
            if not is_replica(process_id):
                return None
            return ev.ProcessExited(
                replica_id=ReplicaID(process_id), reason=event.reason, expected=event.expected
            )
        case base.NodeJoined(node=node):
            return ev.NodeJoined(
                node_id=node.node_id, resources=dict(node.resources), labels=dict(node.labels)
            )
        case base.NodeDraining(node_id=node_id):
            return ev.NodeDraining(node_id=node_id)
        case base.NodeLost(node_id=node_id):
            return ev.NodeLost(node_id=node_id)
