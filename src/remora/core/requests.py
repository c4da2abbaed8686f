"""Whether a request may be accepted at all: what is refused changes nothing.

Rules: pure; the answer is the error to raise, or None.
"""

from __future__ import annotations

from collections import Counter

from remora.core import events as ev
from remora.core.starting import never_fits
from remora.core.state import ControllerState
from remora.errors import (
    ConfigError,
    ExternalScalerDisabledError,
    InstanceError,
    PlacementError,
    RemoraError,
    RouteTakenError,
    UnknownTargetError,
)
from remora.types import DeploymentID


def check(state: ControllerState, request: ev.Request) -> RemoraError | None:
    """Say why a request must be refused; None: it may be accepted. Pure."""
    match request:
        case ev.ScaleRequested():
            return _check_scale(state, request)
        case ev.CapacityRequested():
            return _check_capacity(request)
        case ev.ApplicationBuilt(application=app):
            return _check_application(app) or check_room(state, app)
        case ev.DeployRequested() | ev.ConfigSubmitted():
            return _check_deploy(state, request)
    return None


def _check_deploy(
    state: ControllerState, request: ev.DeployRequested | ev.ConfigSubmitted
) -> RemoraError | None:
    if state.shutting_down:
        return InstanceError("The instance is shutting down and takes no deploys any more.")
    names = Counter(app.name for app in request.applications)
    for name, count in names.items():
        if not name:
            return ConfigError("name", name, "an application needs a name")
        if count > 1:
            return ConfigError("name", name, "an application may occur once in a deploy")
    for app in request.applications:
        error = _check_prefix(app.route_prefix)
        if error is None and isinstance(app, ev.ApplicationRequest):
            error = _check_application(app)
        if error is not None:
            return error
    if error := _check_routes(state, request):
        return error
    # What a config asks for is known when it is imported.
    known = request.applications if isinstance(request, ev.DeployRequested) else ()
    return check_room(state, *known)


def _check_scale(state: ControllerState, request: ev.ScaleRequested) -> RemoraError | None:
    app = state.applications.get(request.app_name)
    if app is None:
        known = ", ".join(sorted(state.applications)) or "none"
        return UnknownTargetError(
            f"No application {request.app_name!r} to scale. Applications: {known}."
        )
    deployment = app.deployments.get(request.deployment)
    if deployment is None:
        known = ", ".join(sorted(app.deployments))
        return UnknownTargetError(
            f"Application {app.name!r} has no deployment {request.deployment!r} to scale. It has: "
            f"{known}."
        )
    name = f"{app.name}/{deployment.name}"
    if not app.external_scaler:
        return ExternalScalerDisabledError(
            f"{name} is not scaled from outside: deploy application {app.name!r} with "
            "external_scaler_enabled=True, or set num_replicas and deploy again."
        )
    if app.deleting or deployment.removed or state.shutting_down:
        return ExternalScalerDisabledError(f"{name} is being deleted and cannot be scaled.")
    if request.num_replicas < 0:
        return ConfigError("num_replicas", request.num_replicas, "must be a whole number >= 0")
    return None


def _check_capacity(request: ev.CapacityRequested) -> RemoraError | None:
    percent = request.percent
    if percent is None or 0 <= percent <= 100:
        return None
    return ConfigError("target_capacity", percent, "must be a number >= 0 and <= 100, or null")


def _check_scaling(app: ev.ApplicationRequest) -> RemoraError | None:
    """Demand and somebody outside cannot both have the say."""
    if not app.external_scaler:
        return None
    for deployment in app.deployments:
        if deployment.config.autoscaling_config is not None:
            return ConfigError(
                "external_scaler_enabled",
                True,
                f"deployment {deployment.name!r} of application {app.name!r} has autoscaling "
                "(autoscaling_config, or num_replicas='auto'): choose one of the two",
            )
    if app.scaling_policy.path:
        return ConfigError(
            "external_scaler_enabled",
            True,
            f"application {app.name!r} has an autoscaling_policy: choose one of the two",
        )
    return None


def _check_application(app: ev.ApplicationRequest) -> RemoraError | None:
    if error := _check_scaling(app):
        return error
    names = [deployment.name for deployment in app.deployments]
    for name in names:
        if not name or "#" in name:
            return ConfigError("name", name, f"a deployment of {app.name} needs a name without '#'")
        if names.count(name) > 1:
            return ConfigError("name", name, f"a deployment may occur once in {app.name}")
    if app.ingress not in names:
        return ConfigError("ingress", app.ingress, f"one of the deployments of {app.name}: {names}")
    return None


def _check_prefix(prefix: str | None) -> RemoraError | None:
    if prefix is None:
        return None
    if not prefix.startswith("/") or (prefix != "/" and prefix.endswith("/")):
        return ConfigError("route_prefix", prefix, "it begins with '/' and does not end with one")
    if "{" in prefix or "}" in prefix:
        return ConfigError("route_prefix", prefix, "it may not have wildcards")
    return None


def _check_routes(
    state: ControllerState, request: ev.DeployRequested | ev.ConfigSubmitted
) -> RemoraError | None:
    """Every route prefix has one owner among the applications that live on."""
    # A config replaces all that was declared before, whatever it was about to become.
    replaces = isinstance(request, ev.ConfigSubmitted)
    redeployed = {app.name for app in request.applications} | {
        name for name, app in state.applications.items() if replaces and app.declared is not None
    }
    owners = {
        app.route_prefix: name
        for name, app in state.applications.items()
        if app.route_prefix is not None and not app.deleting and name not in redeployed
    }
    if state.submission is not None and not replaces:
        for coming in state.submission.applications:
            if coming.route_prefix is not None and coming.name not in redeployed:
                owners[coming.route_prefix] = coming.name
    for app in request.applications:
        if app.route_prefix is None:
            continue
        owner = owners.setdefault(app.route_prefix, app.name)
        if owner != app.name:
            return RouteTakenError(
                f"Application {app.name!r} was not deployed: route prefix {app.route_prefix!r} "
                f"belongs to application {owner!r}. Choose another route_prefix, or delete "
                f"{owner!r} first."
            )
    return None


def check_room(
    state: ControllerState, *applications: ev.ApplicationRequest
) -> PlacementError | None:
    """Refuse what could not run even if nothing else did: all of it counts together. Pure."""
    why = never_fits(
        (
            (DeploymentID(deployment.name, app.name), deployment.config)
            for app in applications
            for deployment in app.deployments
        ),
        state,
    )
    if not why:
        return None
    return PlacementError(
        f"Nothing was deployed, because this could never run here: {why}. Ask for less "
        "of it or for fewer replicas, or say what there is: `remora start --num-cpus`, `--num-gpus`, "
        "`--resources`, `--labels`."
    )
