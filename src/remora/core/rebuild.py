"""Puts applications together from what their replicas say of themselves.

When the saved state is missing or damaged, a replica that runs and that nobody knows is not killed:
it is asked what it is. A replica knows its code, its options and its revision, which is all that
the state knows of its deployment, but for what has no replica.

Rules: pure.
"""

from __future__ import annotations

from remora.core import events as ev
from remora.core.actions import DescribeReplica, KillProcess
from remora.core.draft import Draft
from remora.core.replica_state import Replica, ReplicaState
from remora.core.state import Activity, Application, Deployment, Stranger, Target, make_target
from remora.types import DeploymentID, ReplicaID
from remora.wire.control import ReplicaSpec
from remora.wire.holds import Hold


def ask(draft: Draft, event: ev.ProcessStarted) -> None:
    """Ask a replica that nobody knows what it is."""
    stranger = Stranger(event.address, event.pid, event.node_id)
    draft.state.strangers = {**draft.state.strangers, event.replica_id: stranger}
    draft.actions.append(DescribeReplica(event.replica_id, event.address))


def take_in(draft: Draft, event: ev.ReplicaDescribed) -> None:
    """Give a replica that said what it is its place."""
    stranger = forget(draft, event.replica_id)
    if stranger is None:
        return
    spec = event.spec
    if event.error or spec is None:
        draft.actions.append(KillProcess(event.replica_id))
        return
    app = _application(draft, spec)
    target = make_target(
        code_key=event.code_key,
        code_version=spec.code_version,
        config=spec.config,
        surroundings=spec.surroundings,
        route_prefix=spec.route_prefix,
        ingress=spec.ingress,
        revision=spec.revision,
    )
    deployment = _deployment(draft, app, spec.deployment, target)
    own = spec.holds[0] if spec.holds else Hold(stranger.node_id, spec.config.resources)
    rank, node_rank, local_rank = spec.ranks
    replica = Replica(
        replica_id=event.replica_id,
        state=ReplicaState.STARTING,
        version=target.version,
        config_key=target.config_key,
        node_id=own.node_id,
        resources=own.resources,
        gpus=own.gpus,
        other_holds=spec.holds[1:],
        gang=spec.gang,
        rank=_free_rank(deployment, rank),
        node_rank=node_rank,
        local_rank=local_rank,
        # What it was told last may not be what it said.
        ranks_told=False,
        address=stranger.address,
        pid=stranger.pid,
        since_s=draft.now,
        started_at_unix_s=draft.unix_s,
        was_ready=True,
    )
    draft.add(app, deployment, replica)
    draft.state.activity[event.replica_id] = Activity(found=True, reported=True)
    _step_over(draft, event.replica_id)


def finish(draft: Draft) -> None:
    """Wait for no more answers: who has not said what it is ends."""
    state = draft.state
    if not state.is_rebuilding:
        return
    for replica_id in sorted(state.strangers):
        draft.actions.append(KillProcess(replica_id))
    state.strangers = {}
    state.is_rebuilding = False
    found = {where.app_name for where in state.rebuilt}
    for name in sorted(found):
        app = draft.application(name)
        if app is not None and app.ingress not in app.deployments:
            # Nothing is there that requests could enter by.
            app.route_prefix = None
    names = ", ".join(sorted(map(str, state.rebuilt)))
    if names:
        draft.warnings.append(
            f"Put together from running replicas: {names}. Options that changed since those were "
            "started, and deployments without a running replica, are not known any more: deploy "
            "again."
        )
    state.rebuilt = frozenset()


def forget(draft: Draft, replica_id: ReplicaID) -> Stranger | None:
    """A replica that was asked has answered, or is gone."""
    strangers = dict(draft.state.strangers)
    stranger = strangers.pop(replica_id, None)
    draft.state.strangers = strangers
    return stranger


def _application(draft: Draft, spec: ReplicaSpec) -> Application:
    taken = {each.route_prefix for each in draft.state.applications.values()}
    prefix = spec.route_prefix if spec.route_prefix not in ("", *taken) else None
    app = draft.application_or_new(spec.application, prefix, spec.revision)
    if spec.revision >= app.revision and not app.ingress and spec.ingress:
        app.ingress = spec.deployment
    app.revision = max(app.revision, spec.revision)
    return app


def _deployment(draft: Draft, app: Application, name: str, target: Target) -> Deployment:
    where = DeploymentID(name, app.name)
    found = draft.deployment(where)
    if found is None:
        app.deployments[name] = Deployment(name=name, target=target)
        draft.state.rebuilt |= {where}
        found = draft.deployment(where)
        assert found is not None
    elif where in draft.state.rebuilt and target.version != found.target.version:
        # In the middle of a roll-out: the newer revision is where it was going.
        newer, older = (
            (target, found.target)
            if target.revision > found.target.revision
            else (found.target, target)
        )
        found.target, found.previous = newer, older
    elif where in draft.state.rebuilt and target.revision > found.target.revision:
        found.target = target
    return found


def _free_rank(deployment: Deployment, wanted: int) -> int:
    taken = {replica.rank for replica in deployment.replicas.values()}
    free: int = next(rank for rank in (wanted, *range(len(taken) + 1)) if rank not in taken)
    return free


def _step_over(draft: Draft, replica_id: ReplicaID) -> None:
    """Give no new replica an id that this one, of the same salt, may have."""
    number = replica_id.rpartition("#")[2].removeprefix(draft.state.salt)
    try:
        draft.state.next_replica = max(draft.state.next_replica, int(number, 16) + 1)
    except ValueError:
        # Of another salt.
        return
