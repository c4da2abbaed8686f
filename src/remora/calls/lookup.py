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
from remora.current import require_instance, wait_for
from remora.errors import InstanceError, RemoraError
from remora.handle import DeploymentHandle, handle_to_current_app
from remora.instance import Instance
from remora.types import DeploymentID

if TYPE_CHECKING:
    from remora.router.client import RoutingClient

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
        RemoraError: there is no such application, or no instance.
    """
    instance = require_instance()
    ingress = _known_ingress(name)
    if ingress is None:
        known = wait_for(instance, Instance.status).applications
        if name not in known:
            raise RemoraError(
                f"Application {name!r} does not exist.{nearest(name, known)} "
                f"There {'are' if known else 'is'}: {', '.join(sorted(known)) or 'none'}."
            )
        ingress = _awaited_ingress(name)
    return _cached(DeploymentHandle(ingress, name))


def get_deployment_handle(
    deployment_name: str, app_name: str | None = None, _check_exists: bool = True
) -> DeploymentHandle[Any]:
    """Return a handle to any deployment.

    Args:
        deployment_name: of the deployment.
        app_name: of its application; None: that of the replica that this code runs in.

    Raises:
        RemoraError: no `app_name` outside a deployment, or no instance.
        KeyError: there is no such deployment.
    """
    handle = handle_to_current_app(deployment_name, app_name)
    if _check_exists and not _is_known(deployment_name, handle.app_name):
        report = wait_for(require_instance(), Instance.status)
        app = report.applications.get(handle.app_name)
        if app is None or deployment_name not in app.deployments:
            known = sorted(
                f"{a.name}/{d}" for a in report.applications.values() for d in a.deployments
            )
            raise KeyError(
                f"Deployment {handle.app_name}/{deployment_name} does not exist; there are: "
                f"{', '.join(known) or 'none'}"
            )
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
