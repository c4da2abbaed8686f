"""What a deploy makes of an application: other targets for its deployments, old and new ones.

Rules: pure. Only says what should be; how to get there is decided in `reconcile.py`.
"""

from __future__ import annotations

from remora.core import events as ev
from remora.core import rollback
from remora.core.draft import Draft
from remora.core.goal import has_failed
from remora.core.replica_state import ReplicaState
from remora.core.scale import count_of, scale_after_deploy, take_capacity
from remora.core.state import Application, Deployment, Target, make_target
from remora.types import DeploymentID


def deploy_application(draft: Draft, request: ev.ApplicationRequest) -> Application:
    """Make an application look like `request` says."""
    app = draft.application_or_new(request.name)
    rollback.begin(app, request)
    app.route_prefix = request.route_prefix
    app.ingress = request.ingress
    app.external_scaler = request.external_scaler
    app.scaling_policy = request.scaling_policy
    app.revision += 1
    app.last_deployed_unix_s = draft.unix_s
    leaving = {name for name, each in app.deployments.items() if app.deleting or each.removed}
    app.deleting = False
    app.build_error = ""
    wanted_names = {wanted.name for wanted in request.deployments}
    for name in app.deployments:
        if (known := draft.deployment(DeploymentID(name, app.name))) is not None:
            known.removed = name not in wanted_names
    for wanted in request.deployments:
        target = make_target(
            code_key=wanted.code_key,
            code_version=wanted.code_version,
            config=wanted.config,
            surroundings=request.surroundings,
            route_prefix=request.route_prefix or "",
            ingress=wanted.name == request.ingress,
            revision=app.revision,
            calls=wanted.calls,
        )
        found = draft.deployment(DeploymentID(wanted.name, app.name))
        if found is None:
            new = app.deployments[wanted.name] = Deployment(name=wanted.name, target=target)
            take_capacity(draft.state, new)
        else:
            _retarget(found, target)
            if found.name in leaving and found.completed:
                # The same as before, and its replicas are on their way out.
                found.change, found.completed = "deploy", False
            # Whoever deploys again wants to see a try now.
            draft.pace(app.name, found, retry_at_s=draft.now, crashes_s=())
    draft.mark_app(app)
    return app


def _retarget(deployment: Deployment, target: Target) -> None:
    old, was_given_up = deployment.target, has_failed(deployment)
    before = count_of(deployment)
    deployment.scale = scale_after_deploy(deployment, target.config)
    deployment.target = target
    deployment.failures = deployment.crashes = 0
    deployment.given_up = False
    deployment.last_failure = ""
    same = (old.version, old.config_key) == (target.version, target.config_key)
    grows_by = count_of(deployment) - before
    if same and not grows_by and not was_given_up:
        return
    if same and not was_given_up:
        deployment.change = "scale_up" if grows_by > 0 else "scale_down"
    else:
        runs = any(
            replica.version == old.version for replica in deployment.in_state(ReplicaState.RUNNING)
        )
        # A target of which nothing ever ran is nothing to fall back on, nor is one that was given up.
        if not was_given_up and (deployment.worked or runs):
            deployment.previous = old
        deployment.change = "deploy"
        deployment.worked = False
        if (back := deployment.previous) is not None and (back.version, back.config_key) == (
            target.version,
            target.config_key,
        ):
            # This is what it fell back on: it worked, and there is nothing behind it.
            deployment.previous, deployment.worked = None, True
        deployment.reached_unix_s = 0.0
    deployment.completed = False
