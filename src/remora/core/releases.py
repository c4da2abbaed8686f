"""Which release is in effect, which one a rollback goes to, and what is told of each.

Rules: pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from remora.config import DeploymentConfig
from remora.core import events as ev
from remora.errors import ReleaseError
from remora.wire.releases import Release

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


def told(records: Sequence[Record]) -> tuple[Release, ...]:
    """Describe releases for people, oldest first. Pure."""
    present = _present(records)
    return tuple(_told(record, record is present) for record in records)


def _present(records: Sequence[Record]) -> Record | None:
    configs = [each for each in records if isinstance(each.event, ev.ConfigSubmitted)]
    return configs[-1] if configs else None


def _told(record: Record, in_effect: bool) -> Release:
    event = record.event
    said: dict[str, Any]
    if isinstance(event, ev.ConfigSubmitted):
        kind, names = "config", [app.name for app in event.applications]
        said = {"applications": [json.loads(app.given) for app in event.applications]}
        if event.target_capacity is not None:
            said["target_capacity"] = event.target_capacity
    elif isinstance(event, ev.DeployRequested):
        kind, names = "program", [app.name for app in event.applications]
        said = {"applications": [_program(app) for app in event.applications]}
    else:
        kind, names = "delete", list(event.names)
        said = {"deleted": names}
    return Release(
        number=record.number,
        unix_s=record.unix_s,
        kind=kind,
        source=event.source,
        applications=tuple(names),
        said=msgspec.json.encode(said),
        in_effect=in_effect,
    )


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
    """Find the release of a rollback.

    Pure.

    Args:
        records: those that are kept, oldest first.
        number: which one; 0: the config before the one that is in effect. One that is itself a
            rollback counts as the one that it went to, so that the next goes further back.

    Raises:
        ReleaseError: there is none, or it cannot come back.
    """
    if number:
        found = next((each for each in records if each.number == number), None)
        if found is None:
            kept = f"{records[0].number} to {records[-1].number}" if records else "none"
            raise ReleaseError(f"There is no release {number} (kept: {kept}).")
        if isinstance(found.event, ev.DeleteRequested):
            raise ReleaseError(
                f"Release {number} only deleted {', '.join(found.event.names)}: name one that "
                "deployed something. `remora history` lists them."
            )
        return found
    present = _present(records)
    if present is None:
        raise ReleaseError("No config was deployed, so there is none to go back to.")
    assert isinstance(present.event, ev.ConfigSubmitted)
    base = present.event.rollback_to or present.number
    for record in reversed(records):
        event = record.event
        is_config = isinstance(event, ev.ConfigSubmitted) and not event.rollback_to
        if record.number < base and is_config:
            return record
    raise ReleaseError(
        f"There is no config before release {base} that is kept. `remora history` lists what is; "
        "`remora rollback NUMBER` goes to any of them."
    )


def again(record: Record) -> ev.DeployRequested | ev.ConfigSubmitted:
    """Ask for what a release asked for. Pure."""
    event = record.event
    assert not isinstance(event, ev.DeleteRequested)
    source = f"rollback to {record.number}"
    if isinstance(event, ev.ConfigSubmitted):
        goes_to = event.rollback_to or record.number
        return msgspec.structs.replace(event, event_id=0, source=source, rollback_to=goes_to)
    return msgspec.structs.replace(event, event_id=0, source=source)
