"""Which release is in effect, which one a rollback goes to, and what is told of each.

Rules: pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from remora.config import DeploymentConfig
from remora.core import events as ev
from remora.errors import ReleaseError
from remora.options.resources import RuntimeEnv
from remora.wire.control import DeclaredApplication
from remora.wire.releases import Outcome, Release, ReleaseStatus

#: Of the releases that a rollback passes over, so many are told about.
_TOLD = 5

#: What a release may be.
ReleaseEvent = ev.DeployRequested | ev.ConfigSubmitted | ev.DeleteRequested


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A release as it is kept."""

    number: int
    unix_s: float
    event: ReleaseEvent

    def code_keys(self) -> set[str]:
        """Keys of the code that it takes to let it come back."""
        if not isinstance(self.event, ev.DeployRequested):
            return set()
        return {each.code_key for app in self.event.applications for each in app.deployments}

    def environments(self) -> set[RuntimeEnv]:
        """Environments that it takes to let it come back."""
        found: set[RuntimeEnv] = set()
        if isinstance(self.event, ev.ConfigSubmitted):
            found = {app.runtime_env for app in self.event.applications}
        elif isinstance(self.event, ev.DeployRequested):
            found = {env for app in self.event.applications for env in app.environments()}
        return {env for env in found if env}


def told(
    records: Sequence[Record],
    rolled_back: Mapping[str, int] | None = None,
    outcomes: Mapping[int, Outcome] | None = None,
) -> tuple[Release, ...]:
    """Describe releases for people, oldest first.

    Pure.

    Args:
        records: those that are kept.
        rolled_back: by name, the releases that applications were rolled back from.
        outcomes: what became of them, by number, as far as it is known.
    """
    failed = rolled_back or {}
    became = outcomes or {}
    steps = _declaring(records)
    present = next(reversed(steps), 0)
    return tuple(
        msgspec.structs.replace(
            _told(record, steps.get(record.number), record.number == present),
            rolled_back=tuple(name for name in failed if failed[name] == record.number),
            outcome=_outcome(record, became.get(record.number)),
            reason=became[record.number].reason if record.number in became else "",
        )
        for record in records
    )


def _outcome(record: Record, outcome: Outcome | None) -> str:
    """Name what became of a release; empty: it is not known. Pure."""
    if outcome is None:
        return ""
    is_deletion = isinstance(record.event, ev.DeleteRequested)
    return "deleted" if is_deletion and outcome.status == "deployed" else str(outcome.status)


def _declaring(records: Sequence[Record]) -> dict[int, ev.ConfigSubmitted]:
    """Releases that changed what is declared, by number, oldest first, and what was then.

    A deletion of something declared is one: it stands for the config before without that.
    """
    steps: dict[int, ev.ConfigSubmitted] = {}
    declared = ev.ConfigSubmitted(applications=())
    for record in records:
        event = record.event
        if isinstance(event, ev.ConfigSubmitted):
            steps[record.number] = declared = event
            continue
        names = set(
            event.names
            if isinstance(event, ev.DeleteRequested)
            else (app.name for app in event.applications)
        )
        left = tuple(app for app in declared.applications if app.name not in names)
        if left == declared.applications:
            continue
        declared = msgspec.structs.replace(declared, applications=left, rollback_to=0)
        if isinstance(event, ev.DeleteRequested):
            steps[record.number] = declared
    return steps


def _config(event: ev.ConfigSubmitted) -> dict[str, Any]:
    said: dict[str, Any] = {"applications": [json.loads(app.given) for app in event.applications]}
    if event.target_capacity is not None:
        said["target_capacity"] = event.target_capacity
    return said


def _told(record: Record, declared: ev.ConfigSubmitted | None, in_effect: bool) -> Release:
    event = record.event
    said: dict[str, Any]
    if isinstance(event, ev.ConfigSubmitted):
        kind, names = "config", [app.name for app in event.applications]
        said = _config(event)
    elif isinstance(event, ev.DeployRequested):
        kind, names = "program", [app.name for app in event.applications]
        said = {"applications": [_program(app) for app in event.applications]}
    else:
        kind, names = "delete", list(event.names)
        said = {"deleted": names, **({} if declared is None else _config(declared))}
    return Release(
        number=record.number,
        unix_s=record.unix_s,
        kind=kind,
        source=event.source,
        rollback_to=event.rollback_to if isinstance(event, ev.ConfigSubmitted) else 0,
        applications=tuple(names),
        said=_written(said),
        in_effect=in_effect,
    )


def _written(said: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(said)
    except TypeError:
        # A `user_config` with None or True as a key, from when those were not refused yet.
        return json.dumps(said).encode()


def _program(app: ev.ApplicationRequest) -> dict[str, Any]:
    """What a program deployed, in the words of a config."""
    defaults = msgspec.to_builtins(DeploymentConfig())
    deployments = []
    for each in app.deployments:
        options = msgspec.to_builtins(each.config)
        changed = {name: value for name, value in options.items() if value != defaults.get(name)}
        deployments.append({"name": each.name, "code": each.code_version, **changed})
    return {"name": app.name, "route_prefix": app.route_prefix, "deployments": deployments}


def to_go_back_to(records: Sequence[Record], number: int) -> Record:
    """Find the release of a rollback that names one.

    Pure.

    Args:
        records: those that are kept, oldest first.
        number: which one.

    Raises:
        ReleaseError: there is none, or it cannot come back.
    """
    steps = _declaring(records)
    found = next((each for each in records if each.number == number), None)
    if found is None:
        kept = f"{records[0].number} to {records[-1].number}" if records else "none"
        raise ReleaseError(f"There is no release {number} (kept: {kept}).")
    if number in steps:
        return msgspec.structs.replace(found, event=steps[number])
    if isinstance(found.event, ev.DeleteRequested):
        raise ReleaseError(
            f"Release {number} only deleted {', '.join(found.event.names)}: name one that "
            "deployed something. `remora history` lists them."
        )
    return found


def before_present(
    records: Sequence[Record],
    outcomes: Mapping[int, Outcome],
    declared: Mapping[str, DeclaredApplication] | None = None,
    target_capacity: float | None = None,
) -> Record:
    """Find the release of a rollback that names none: the last that worked and is another one.

    Pure.

    Args:
        records: those that are kept, oldest first.
        outcomes: what became of them, as far as it is known; where it is not, it worked.
        declared: what is declared now, by name; None: what the latest of the releases says. After
            a roll-out that was rolled back by itself it is what that went back to.
        target_capacity: the share that is switched on now.

    Returns:
        One before the release that is in effect. If that one is itself a rollback, the search
        begins before the one that it went to: a second rollback goes further back.

    Raises:
        ReleaseError: there is none; says why each of the last few is none.
    """
    steps = _declaring(records)
    if not steps:
        raise ReleaseError("No config was deployed, so there is none to go back to.")
    latest = steps[next(reversed(steps))]
    base = latest.rollback_to or next(reversed(steps))
    present = (
        _content(latest) if declared is None else (_by_name(declared.values()), target_capacity)
    )
    passed: list[str] = []
    for number in sorted((each for each in steps if each < base), reverse=True):
        became = outcomes.get(number)
        if became is not None and became.status != ReleaseStatus.DEPLOYED:
            passed.append(f"{number} {_what_it_was(became)}")
        elif _content(steps[number]) == present:
            passed.append(f"{number} says what is declared now")
        else:
            # A rollback said nothing of its own.
            goes_to = steps[number].rollback_to
            return to_go_back_to(records, goes_to if goes_to in steps else number)
    why = f": {'; '.join(passed[:_TOLD])}" if passed else ""
    more = f"; and {len(passed) - _TOLD} more" if len(passed) > _TOLD else ""
    raise ReleaseError(
        f"There is no config before release {base} that was in effect and differs from what is "
        f"declared now{why}{more}. `remora history` lists what is kept; `remora rollback NUMBER` "
        "goes to any of it."
    )


def _what_it_was(outcome: Outcome) -> str:
    words = {
        ReleaseStatus.FAILED: "failed",
        ReleaseStatus.ROLLED_BACK: "failed and was rolled back",
        ReleaseStatus.REPLACED: "was replaced before it was there",
    }
    return words.get(outcome.status, "never got there")


def _content(event: ev.ConfigSubmitted) -> tuple[dict[str, DeclaredApplication], float | None]:
    """Say what a config wants, so that two can be compared. Pure."""
    return _by_name(event.applications), event.target_capacity


def _by_name(applications: Iterable[DeclaredApplication]) -> dict[str, DeclaredApplication]:
    # In which line of the file it stands makes no difference.
    return {app.name: msgspec.structs.replace(app, places={}) for app in applications}


def made_for(records: Iterable[Record], request_id: str) -> int | None:
    """Find the release that a rollback has made already; None: it has made none. Pure."""
    return next(
        (
            record.number
            for record in records
            if not isinstance(record.event, ev.DeleteRequested)
            and request_id
            and record.event.request_id == request_id
        ),
        None,
    )


def again(record: Record, request_id: str = "") -> ev.DeployRequested | ev.ConfigSubmitted:
    """Ask for what a release asked for, in the name of a rollback. Pure."""
    event = record.event
    assert not isinstance(event, ev.DeleteRequested)
    source = f"rollback to {record.number}"
    if isinstance(event, ev.ConfigSubmitted):
        goes_to = event.rollback_to or record.number
        return msgspec.structs.replace(
            event, event_id=0, source=source, rollback_to=goes_to, request_id=request_id
        )
    return msgspec.structs.replace(event, event_id=0, source=source, request_id=request_id)
