"""Going back to what worked: an application whose roll-out failed is declared to be as before.

An application is good when all of its deployments were complete together and are trusted. What
it was asked to be last that worked and was not given up is kept while something newer is tried.
It need not be trusted yet: what is two releases old is not what anybody wants back. When that
fails, and the deployment that failed says `rollback="auto"`, the whole application goes back,
because versions of two deployments that were never meant for each other are worse than either.

Rules: pure.
"""

from __future__ import annotations

import msgspec

from remora.core.draft import Draft
from remora.core.goal import failed_how, has_failed
from remora.core.state import Application, Deployment
from remora.core.submission import ApplicationRequest
from remora.wire.control import DeclaredApplication


def begin(app: Application, request: ApplicationRequest) -> None:
    """Remember what an application is asked to be, and what it was when all was well."""
    if app.is_good or _works(app):
        app.good, app.good_by = app.request, app.requested_by
    app.requested_by = None
    app.request, app.is_good, app.failure = request, False, ""


def _works(app: Application) -> bool:
    staying = [each for each in app.deployments.values() if not each.removed]
    return bool(staying) and all(each.worked and not has_failed(each) for each in staying)


def note_good(app: Application) -> None:
    """Remember that an application is what it was asked to be."""
    if app.is_good or app.deleting or app.request is None:
        return
    if all(
        each.completed and each.previous is None and not each.removed
        for each in app.deployments.values()
    ):
        app.is_good, app.good, app.good_by = True, None, None


def wanted(draft: Draft, app: Application, deployment: Deployment) -> ApplicationRequest | None:
    """Say what to go back to because of a deployment; None: there is no need, or nothing.

    Pure.
    """
    if app.good is None or app.deleting or deployment.removed or not has_failed(deployment):
        return None
    if deployment.target.config.rollback != "auto":
        return None
    owners = {
        other.route_prefix
        for other in draft.state.applications.values()
        if other.route_prefix is not None and other.name != app.name and not other.deleting
    }
    prefix = app.route_prefix if app.good.route_prefix in owners else app.good.route_prefix
    back = msgspec.structs.replace(app.good, route_prefix=prefix)
    # What went back and cannot start now either is not helped by going back again: that would be
    # another try at once, without end.
    return back if back != app.request else None


def declare(
    app: Application, failed_by: DeclaredApplication | None, good_by: DeclaredApplication | None
) -> None:
    """Let the config of what was gone back to be the one that is declared.

    Unless a later one came meanwhile, or a program deployed what was gone back to.
    """
    app.requested_by = good_by
    if good_by is not None and app.declared == failed_by:
        app.declared = good_by


def told(app: Application, deployment: Deployment) -> str:
    """Say what failed and what was done about it. Pure."""
    return (
        f"Revision {app.revision} (release {app.release}) failed and was rolled back to what ran "
        f"before.\nIts deployment {deployment.name!r} {failed_how(deployment)}.\nThe last failure:\n"
        f"{deployment.last_failure}"
    )
