"""What is reserved for a replica, and which gang it belongs to: what it is told, and what is decided on.

Rules: plain values. `gc=False`: there are thousands of them, and they can form no circle.
"""

from __future__ import annotations

import msgspec

from remora.types import NodeID, ReplicaID


class Hold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is reserved for a replica on one node: all of it, or one bundle of its group."""

    node_id: NodeID
    resources: dict[str, float] = {}
    #: Indices of the node's GPUs that it may use.
    gpus: tuple[int, ...] = ()


class Gang(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The gang that a replica belongs to."""

    gang_id: str
    #: Place in the gang, 0 … its size - 1.
    rank: int
    #: Ids of all its replicas, by rank.
    members: tuple[ReplicaID, ...]
