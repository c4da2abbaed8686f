"""What was deployed when, as the controller tells it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ReleaseStatus(StrEnum):
    """What became of a release."""

    UNDER_WAY = "under way"
    #: Everything that it asked for was there.
    DEPLOYED = "deployed"
    #: Something of it cannot be; what ran before goes on where it can.
    FAILED = "failed"
    #: It failed, and `rollback="auto"` brought back what ran before.
    ROLLED_BACK = "rolled back"
    #: A newer one came before it was there.
    REPLACED = "replaced"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one release, and why."""

    status: ReleaseStatus
    #: In a line; empty where there is nothing to say.
    reason: str = ""
    #: The release that took something over before it was there; 0: none did.
    replaced_by: int = 0


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted deploy or deletion."""

    number: int
    #: Unix time.
    unix_s: float
    #: `config`, `program` or `delete`.
    kind: str
    #: Who or what it came from, for people.
    source: str
    #: Names of the applications that it was about.
    applications: tuple[str, ...]
    #: What it said, as JSON: the config, or what corresponds to one.
    said: bytes
    #: Of the releases that are kept, this one decides what is declared.
    in_effect: bool = False
    #: Applications that were rolled back from what this one says.
    rolled_back: tuple[str, ...] = ()
    #: What became of it: a `ReleaseStatus`, or `deleted`; empty: it is not known.
    outcome: str = ""
    #: Why it failed, or which release replaced it; empty where there is nothing to say.
    reason: str = ""
    #: The release that this one brought back; 0: it is no rollback.
    rollback_to: int = 0


class Releases(msgspec.Struct, frozen=True):
    """Those that are kept, oldest first."""

    releases: tuple[Release, ...]


class RollbackRequest(msgspec.Struct, frozen=True):
    """Let what a release said be what is wanted; 0: the last that worked and is another than the present one."""

    number: int
    #: The same each time that one rollback is asked for: a second one would go further back.
    request_id: str = ""
