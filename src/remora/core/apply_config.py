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
    leaving = gone(draft, submission)
    kept = _predecessors(draft, submission, leaving)
    for name, error in submission.failed.items():
        note = (
            f"Until it can be imported, application {kept[name]!r}, which the config does not "
            "declare any more, goes on serving its route.\n"
            if name in kept
            else ""
        )
        _refuse(draft, name, note + error)
    wanted = [app for app in submission.applications if app.name in submission.built]
    requests = {app.name: submission.built[app.name] for app in wanted}
    for name, owner in conflicts(draft, requests, leaving).items():
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
    for name in leaving:
        if (app := draft.application(name)) is not None and name not in kept.values():
            delete(draft, app)
    for request in requests.values():
        app = deploy_application(draft, request)
        app.requested_by = app.declared


def _refuse(draft: Draft, name: str, error: str) -> None:
    if (app := draft.application(name)) is not None:
        app.build_error = error


def _predecessors(draft: Draft, submission: Submission, leaving: list[str]) -> dict[str, str]:
    """Say of applications that could not be imported who has their route until they can be.

    An application that was given another name is an undeclared one and a new one: to delete the
    one although there is not the other would take down what serves.
    """
    owners = {draft.state.applications[name].route_prefix: name for name in leaving}
    return {
        app.name: owners[app.route_prefix]
        for app in submission.applications
        if app.name in submission.failed
        and app.route_prefix is not None
        and app.route_prefix in owners
    }


def gone(draft: Draft, submission: Submission) -> list[str]:
    """Applications that an earlier config declared and this one does not."""
    names = {app.name for app in submission.applications}
    return [
        name
        for name, app in draft.state.applications.items()
        if app.declared is not None and not app.deleting and name not in names
    ]


def conflicts(
    draft: Draft, requests: dict[str, ApplicationRequest], leaving: list[str]
) -> dict[str, str]:
    """Applications that cannot have their route, and who has it; those that leave give theirs up.

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
            and app.name not in leaving
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
