"""What is known of the config that was submitted last: facts are taken in, builds are asked for.

Rules: pure. When everything is imported, `apply_config` lets it take effect.
"""

from __future__ import annotations

import msgspec

from remora.core import events as ev
from remora.core.actions import BuildApplication, CancelBuilds
from remora.core.draft import Draft
from remora.core.state import Application
from remora.core.submission import Submission


def config_submitted(draft: Draft, event: ev.ConfigSubmitted) -> None:
    """Begin to import what a config declares; what an earlier one was waiting for is dropped."""
    state = draft.state
    state.release += 1
    if state.submission is not None:
        draft.actions.append(CancelBuilds(state.release))
    state.submission = Submission(release=state.release, applications=event.applications)
    _leave_out(draft, {declared.name for declared in event.applications})
    for declared in event.applications:
        # Without a route until there is something behind it.
        app = draft.application_or_new(declared.name)
        app.revision += 1
        app.last_deployed_unix_s = draft.unix_s
        app.release = state.release
        app.declared = declared
        app.build_error = app.failure = ""
    ask_for_builds(draft)


def _leave_out(draft: Draft, names: set[str]) -> None:
    """What was declared before and is not any more goes, once the rest of the config is imported.

    It is this release that decides about it from here on: who waits for an earlier one is told.
    """
    for name, known in list(draft.state.applications.items()):
        if known.declared is None or name in names:
            continue
        app = draft.application(name)
        assert app is not None
        if app.deleting:
            # One that was declared again meanwhile, and could not be imported.
            app.build_error = ""
        elif app.deployments:
            app.release = draft.state.release
        else:
            # Nothing of it ever took effect.
            delete(draft, app)


def ask_for_builds(draft: Draft) -> None:
    """Ask for every import that is not done yet: of a new config, or after a restart."""
    submission = draft.state.submission
    if submission is not None:
        for declared in submission.pending():
            draft.actions.append(BuildApplication(submission.release, declared))


def application_built(draft: Draft, event: ev.ApplicationBuilt) -> None:
    """Note what an import path led to, unless nobody waits for it any more."""
    submission = draft.state.submission
    if submission is not None and submission.release == event.release:
        built = {**submission.built, event.application.name: event.application}
        draft.state.submission = msgspec.structs.replace(submission, built=built)


def application_not_built(draft: Draft, event: ev.ApplicationNotBuilt) -> None:
    """Note why an import path leads nowhere, unless nobody waits for it any more."""
    submission = draft.state.submission
    if submission is not None and submission.release == event.release:
        failed = {**submission.failed, event.name: event.error}
        draft.state.submission = msgspec.structs.replace(submission, failed=failed)


def delete(draft: Draft, app: Application) -> None:
    """Begin to take an application down; one that never came up is gone at once."""
    app.deleting, app.build_error = True, ""
    if app.deployments:
        draft.mark_app(app)
    else:
        del draft.state.applications[app.name]


def forget(draft: Draft, names: frozenset[str]) -> None:
    """Somebody has deployed or deleted these meanwhile: the config says nothing of them any more."""
    submission = draft.state.submission
    if submission is not None:
        draft.state.submission = submission.without(names)


def give_up(draft: Draft) -> None:
    """The instance ends, and nothing more takes effect."""
    if draft.state.submission is not None:
        draft.actions.append(CancelBuilds(draft.state.submission.release + 1))
        draft.state.submission = None
