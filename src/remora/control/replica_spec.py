"""What a replica is told that it is, and what it says that it is: the same, in both directions.

Rules: pure.
"""

from __future__ import annotations

from remora.core import actions as act
from remora.core import events as ev
from remora.core.ranks import Ranks
from remora.core.replica_state import Gang, Hold
from remora.types import ReplicaID
from remora.wire.control import GangSpec, HoldSpec, ReplicaSpec


def spec_of(action: act.InitializeReplica, code: bytes) -> ReplicaSpec:
    """Tell a replica what it is. Pure."""
    gang = action.gang
    return ReplicaSpec(
        replica_id=action.replica_id,
        application=action.app_name,
        deployment=action.deployment,
        code=code,
        code_version=action.code_version,
        config=action.config,
        surroundings=action.surroundings,
        route_prefix=action.route_prefix,
        ranks=action.ranks,
        world_size=action.world_size,
        gang=None if gang is None else GangSpec(gang.gang_id, gang.rank, gang.members),
        ingress=action.ingress,
        revision=action.revision,
        holds=tuple(HoldSpec(each.node_id, each.resources, each.gpus) for each in action.holds),
    )


def described(replica_id: ReplicaID, spec: ReplicaSpec, code_key: str) -> ev.ReplicaDescribed:
    """Take what a replica says that it is for what happened. Pure."""
    gang = spec.gang
    members = () if gang is None else tuple(ReplicaID(each) for each in gang.members)
    return ev.ReplicaDescribed(
        replica_id=replica_id,
        app_name=spec.application,
        deployment=spec.deployment,
        code_key=code_key,
        code_version=spec.code_version,
        config=spec.config,
        surroundings=spec.surroundings,
        route_prefix=spec.route_prefix,
        ingress=spec.ingress,
        revision=spec.revision,
        ranks=Ranks(*spec.ranks),
        gang=None if gang is None else Gang(gang.gang_id, gang.rank, members),
        holds=tuple(Hold(each.node_id, each.resources, each.gpus) for each in spec.holds),
    )
