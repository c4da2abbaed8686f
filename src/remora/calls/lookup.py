"""Handles to what runs already, found by name.

Rules: a replica, which has the routing snapshot at hand, asks nobody; the rest asks the controller.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

from remora.config import nearest
from remora.context import get_replica_context
from remora.core.status_text import failure_text
from remora.current import require_instance, wait_for
from remora.errors import DeployError, InstanceError, NotDeployedError, RemoraError
from remora.handle import DeploymentHandle
from remora.instance import Instance
from remora.types import DeploymentID

if TYPE_CHECKING:
    from remora.router.client import RoutingClient
    from remora.wire.control import InstanceStatus

_log = logging.getLogger("remora")

#: Handles that are kept, as in Ray Serve.
MAX_CACHED_HANDLES = 100
#: Seconds for a running application to show up in this process's routing snapshot.
_SNAPSHOT_LIMIT_S = 5.0

_handles: dict[tuple[str, str], DeploymentHandle[Any]] = {}


def forget_handles() -> None:
    """Drop the handles that are kept: the instance that they lead to is gone."""
    _handles.clear()


def forget_handles_of(app_name: str) -> None:
    """Drop the handles that are kept for an application: it is being deleted."""
    for key in [key for key in list(_handles) if key[1] == app_name]:
        _handles.pop(key, None)


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """Return a handle to the ingress of an application.

    Raises:
        NotDeployedError: there is no such application, or it is being deleted.
        DeployError: it is there, and none of it has ever come up.
        InstanceError: no instance.
    """
    instance = require_instance()
    ingress = _known_ingress(name)
    if ingress is None:
        _require(wait_for(instance, Instance.status), name)
        ingress = _awaited_ingress(name)
    return _cached(DeploymentHandle(ingress, name))


def _require(report: InstanceStatus, name: str, deployment: str = "") -> None:
    """Refuse an application that a handle cannot lead to, and a deployment that it does not have.

    Pure.

    Raises:
        NotDeployedError: there is no such thing, or it is being deleted.
        DeployError: it never came up.
    """
    known = report.applications
    app = known.get(name)
    if app is None:
        raise NotDeployedError(
            f"Application {name!r} is not deployed.{nearest(name, known)} Deployed: "
            f"{', '.join(sorted(known)) or 'none'}. `remora status` shows how they are; "
            f"remora.run(app, name={name!r}) deploys one."
        )
    if app.status == "DELETING":
        raise NotDeployedError(
            f"Application {name!r} is being deleted; deploy it again to call it."
        )
    if not app.deployments and app.status == "DEPLOY_FAILED":
        raise DeployError(
            f"Application {name!r} has nothing to call: its deploy failed. Mend the cause and deploy "
            f"again.\n{failure_text(app)}"
        )
    if deployment and app.deployments and deployment not in app.deployments:
        raise NotDeployedError(
            f"Application {name!r} has no deployment {deployment!r}."
            f"{nearest(deployment, app.deployments)} It has: {', '.join(sorted(app.deployments))}."
        )


def get_deployment_handle(
    deployment_name: str, app_name: str | None = None, _check_exists: bool = True
) -> DeploymentHandle[Any]:
    """Return a handle to any deployment.

    Args:
        deployment_name: of the deployment.
        app_name: of its application; None: that of the replica that this code runs in.

    Raises:
        RemoraError: no `app_name` outside a deployment.
        NotDeployedError: there is no such application, or it has no such deployment; a KeyError.
        DeployError: the application is there, and none of it has ever come up.
        InstanceError: no instance.
    """
    handle = handle_to_current_app(deployment_name, app_name)
    if _check_exists and not _is_known(deployment_name, handle.app_name):
        report = wait_for(require_instance(), Instance.status)
        _require(report, handle.app_name, deployment_name)
    return _cached(handle)


def _is_known(deployment_name: str, app_name: str) -> bool:
    """Whether the controller need not be asked: there was such a deployment, and still is."""
    from remora.router.process import knows_deployment

    # A snapshot alone is not enough: it may be of an instance that this process has left.
    is_kept = (deployment_name, app_name) in _handles
    return is_kept and knows_deployment(DeploymentID(deployment_name, app_name))


def _cached(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    key = (handle.deployment_name, handle.app_name)
    if key not in _handles and len(_handles) >= MAX_CACHED_HANDLES:
        gone = random.choice(tuple(_handles))
        del _handles[gone]
        _log.warning("More than %d handles; %s/%s was dropped.", MAX_CACHED_HANDLES, *gone[::-1])
    return _handles.setdefault(key, handle)


# ---------------------------------------------------------------------- the routing snapshot


def _known_ingress(app_name: str) -> str | None:
    """Read the ingress from this loop's snapshot, if it is there: no round trip in a replica."""
    from remora.router.process import routing_client

    try:
        client = routing_client(asyncio.get_running_loop())
    except (RuntimeError, InstanceError):
        return None
    app = client.snapshot.apps.get(app_name)
    return app.ingress if app is not None else None


def _awaited_ingress(app_name: str) -> str:
    """Wait until the background client's snapshot names a running application."""
    from remora.router.process import background_client

    client = background_client()
    waiting = asyncio.run_coroutine_threadsafe(_wait_app(client, app_name), client.loop)
    try:
        return waiting.result(_SNAPSHOT_LIMIT_S)
    except TimeoutError:
        waiting.cancel()
        raise RemoraError(
            f"Application {app_name!r} is not routed yet after {_SNAPSHOT_LIMIT_S:g}s; "
            "`remora status` shows how far it is."
        ) from None


async def _wait_app(client: RoutingClient, app_name: str) -> str:
    changed = asyncio.Event()

    def on_change(_: object) -> None:
        changed.set()

    client.on_change.append(on_change)
    try:
        while (app := client.snapshot.apps.get(app_name)) is None:
            await changed.wait()
            changed.clear()
        return app.ingress
    finally:
        client.on_change.remove(on_change)


def get_deployment_actor(actor_name: str) -> DeploymentHandle[Any]:
    """A handle to an actor of the deployment that this code is a replica of.

    Its methods are called as those of a deployment: `await actor.method.remote(...)`.

    Raises:
        RemoraError: this is no replica.
        ValueError: the deployment has no actor of that name.
    """
    context = get_replica_context()
    found = context.actors.get(actor_name)
    if found is None:
        known = sorted(context.actors)
        raise ValueError(
            f"Deployment {context.deployment!r} has no deployment actor {actor_name!r}."
            f"{nearest(actor_name, known)} It has: {', '.join(known) or 'none'}."
        )
    return DeploymentHandle(found, context.app_name)


def handle_to_current_app(deployment_name: str, app_name: str | None) -> DeploymentHandle[Any]:
    """Make a handle; without an application's name, to a deployment of the current one.

    Raises:
        RemoraError: no name was given, and this is no replica.
    """
    if app_name is None:
        from remora.context import replica_context_or_none

        context = replica_context_or_none()
        if context is None:
            raise RemoraError(
                "get_deployment_handle() needs app_name outside a deployment: there is no "
                "current application here"
            )
        app_name = context.app_name
    return DeploymentHandle(deployment_name, app_name)
