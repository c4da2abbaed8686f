"""What was deployed when, as the controller tells it."""

from __future__ import annotations

import msgspec


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


class Releases(msgspec.Struct, frozen=True):
    """Those that are kept, oldest first."""

    releases: tuple[Release, ...]


class RollbackRequest(msgspec.Struct, frozen=True):
    """Let what a release said be what is wanted; 0: the config before the present one."""

    number: int
