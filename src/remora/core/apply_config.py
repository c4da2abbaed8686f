"""Lets a config take effect, once all its import paths have been followed.

Rules: pure. Everything changes in one step, so that a route that goes from one application to
another belongs to one of them at any time.
"""

from __future__ import annotations

from remora.core.declared import delete
from remora.core.deploy import deploy_application
from remora.core.draft import Draft
from remora.core.requests import check_room
from remora.core.submission import ApplicationRequest, Submission


def apply_config(draft: Draft) -> None:
    """Deploy what was imported, delete what is not declared any more. Waits for the last import."""
    state = draft.state
    submission = state.submission
    if submission is None or submission.pending():
        return
    state.submission = None
    for name in gone(draft, submission):
        if (app := draft.application(name)) is not None:
            delete(draft, app)
    for name, error in submission.failed.items():
        _refuse(draft, name, error)
    wanted = [app for app in submission.applications if app.name in submission.built]
    requests = {app.name: submission.built[app.name] for app in wanted}
    for name, owner in conflicts(draft, requests).items():
        request = requests.pop(name)
        _refuse(
            draft,
            name,
            f"Route prefix {request.route_prefix!r} belongs to application {owner!r}, whose new "
            "version could not be imported and whose old one keeps it. Fix that one, and "
            "deploy again.",
        )
    if (unfit := check_room(state, *requests.values())) is not None:
        # Each of them was small enough alone.
        for name in requests:
            _refuse(draft, name, str(unfit))
        return
    for request in requests.values():
        app = deploy_application(draft, request)
        app.requested_by = app.declared


def _refuse(draft: Draft, name: str, error: str) -> None:
    if (app := draft.application(name)) is not None:
        app.build_error = error


def gone(draft: Draft, submission: Submission) -> list[str]:
    """Applications that an earlier config declared and this one does not."""
    names = {app.name for app in submission.applications}
    return [
        name
        for name, app in draft.state.applications.items()
        if app.declared is not None and name not in names
    ]


def conflicts(draft: Draft, requests: dict[str, ApplicationRequest]) -> dict[str, str]:
    """Applications that cannot have their route, and who has it.

    Everything that was checked before was about what should be; an import that failed leaves
    its application where it was, and so may each one that is found here.
    """
    found: dict[str, str] = {}
    while True:
        owners = {
            app.route_prefix: app.name
            for app in draft.state.applications.values()
            if app.route_prefix is not None
            and not app.deleting
            and (app.name not in requests or app.name in found)
        }
        more = {
            name: owners[request.route_prefix]
            for name, request in requests.items()
            if name not in found and request.route_prefix in owners
        }
        if not more:
            return found
        found.update(more)
