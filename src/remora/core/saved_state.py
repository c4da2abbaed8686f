"""The durable part of the state as it is saved: small pieces, each readable without the others.

One piece for what concerns everything (`HEADER`), one for each application, one for each
deployment. So a change costs what it changes, and damage costs what is damaged.

The header names the schema. What older versions wrote is read by the reader of its schema and
written anew in the present one; a state of a newer version is not touched.

Rules: pure. The only module that knows what a saved state looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from remora.core.snapshot import Snapshot
from remora.core.state import Application, ControllerState, Deployment, validate
from remora.core.submission import Submission
from remora.errors import InternalError, RemoraError
from remora.types import DeploymentID
from remora.wire.releases import Outcome

T = TypeVar("T")

#: Raised when a saved state of before cannot be read as it is any more; the old reader stays.
SCHEMA_VERSION = 2

HEADER = "state"
APPS = "app/"
DEPLOYMENTS = "deployment/"


class StateUnreadableError(RemoraError):
    """A saved state cannot be read."""


class _Header(msgspec.Struct, kw_only=True):
    """What concerns everything. Its fields are those of `ControllerState`, and the schema."""

    schema: int = SCHEMA_VERSION
    shutting_down: bool = False
    target_capacity: float | None = None
    capacity_grows: bool = False
    salt: str = ""
    next_replica: int = 1
    snapshot_version: int = 0
    last_event_id: int = 0
    release: int = 0
    submission: Submission | None = None
    outcomes: dict[int, Outcome] = {}


_HEADER_FIELDS = tuple(name for name in _Header.__struct_fields__ if name != "schema")


class _DeploymentPiece(msgspec.Struct, kw_only=True):
    """A deployment, and where it belongs."""

    app_name: str
    deployment: Deployment


class _Whole(msgspec.Struct, kw_only=True):
    """Schema 1: everything in one piece."""

    applications: dict[str, Application]
    shutting_down: bool
    salt: str
    next_replica: int
    snapshot_version: int
    last_event_id: int
    target_capacity: float | None = None
    capacity_grows: bool = False
    release: int = 0
    submission: None = None
    outcomes: dict[int, Outcome] = {}


class _Schema(msgspec.Struct):
    """Only the number, readable whatever the rest looks like."""

    schema: int


@dataclass
class Reading:
    """What was read.

    Attributes:
        state: the durable part; the volatile part is empty.
        unreadable: pieces that are damaged, or make no sense with the others, and why.
    """

    state: ControllerState
    unreadable: dict[str, str] = field(default_factory=dict)


# -------------------------------------------------------------------------------------- writing


def app_key(name: str) -> str:
    """Name the piece of an application. Pure."""
    return f"{APPS}{name}"


def deployment_key(where: DeploymentID) -> str:
    """Name the piece of a deployment. Pure."""
    return f"{DEPLOYMENTS}{where.app_name}#{where.name}"


def header_piece(state: ControllerState, *, with_event_id: bool = True) -> bytes:
    """Write what concerns everything; the event id alone makes no new state worth saving. Pure."""
    header = _Header(**{name: getattr(state, name) for name in _HEADER_FIELDS})
    if header.submission is not None:
        # What was imported so far would be written again with every further import.
        header.submission = header.submission.begun_again()
    if not with_event_id:
        header.last_event_id = 0
    return msgspec.msgpack.encode(header)


def app_piece(state: ControllerState, name: str) -> bytes | None:
    """Write one application, its deployments left out; None: it is not there any more. Pure."""
    app = state.applications.get(name)
    if app is None:
        return None
    return msgspec.msgpack.encode(msgspec.structs.replace(app, deployments={}))


def deployment_piece(state: ControllerState, where: DeploymentID) -> bytes | None:
    """Write one deployment; None: it is not there any more. Pure."""
    app = state.applications.get(where.app_name)
    deployment = app.deployments.get(where.name) if app is not None else None
    if deployment is None:
        return None
    piece = _DeploymentPiece(app_name=where.app_name, deployment=deployment)
    return msgspec.msgpack.encode(piece)


def encode(state: ControllerState, *, with_event_id: bool = True) -> dict[str, bytes]:
    """Write the whole durable part, by key. Pure."""
    pieces: dict[str, bytes | None] = {HEADER: header_piece(state, with_event_id=with_event_id)}
    for name, app in state.applications.items():
        pieces[app_key(name)] = app_piece(state, name)
        for each in app.deployments:
            where = DeploymentID(each, name)
            pieces[deployment_key(where)] = deployment_piece(state, where)
    return {key: piece for key, piece in pieces.items() if piece is not None}


# -------------------------------------------------------------------------------------- reading


def decode(pieces: Mapping[str, bytes]) -> ControllerState:
    """Read the durable part.

    Pure.

    Raises:
        StateUnreadableError: any of it is damaged, or was written by a newer version.
    """
    reading = read(pieces)
    for key, why in reading.unreadable.items():
        raise StateUnreadableError(f"The saved state {key!r} cannot be read: {why}")
    return reading.state


def read(pieces: Mapping[str, bytes]) -> Reading:
    """Read as much of the durable part as can be read. Pure; never raises for what was saved."""
    header = pieces.get(HEADER)
    schema = SCHEMA_VERSION
    try:
        if header is not None:
            schema = msgspec.msgpack.decode(header, type=_Schema).schema
    except (msgspec.MsgspecError, ValueError):
        pass  # The reader below says what is wrong with it.
    reader = _READERS.get(schema)
    if reader is None:
        why = f"it has schema {schema}, and this version reads {', '.join(map(str, _READERS))}"
        return Reading(ControllerState(), dict.fromkeys(pieces, why))
    reading = reader(pieces)
    # Routers may hold that version from a controller before this one.
    reading.state.routing = Snapshot(reading.state.snapshot_version)
    try:
        validate(reading.state)
    except InternalError as error:
        why = f"it contradicts itself: {error}"
        return Reading(ControllerState(), dict.fromkeys(pieces, why))
    return reading


def _read_pieces(pieces: Mapping[str, bytes]) -> Reading:
    reading = Reading(ControllerState())
    state = reading.state
    header = _opened(reading, HEADER, pieces.get(HEADER), _Header)
    if header is not None:
        for name in _HEADER_FIELDS:
            setattr(state, name, getattr(header, name))
    elif pieces and HEADER not in pieces:
        reading.unreadable[HEADER] = "it is missing"
    for key, data in pieces.items():
        if key.startswith(APPS) and (app := _opened(reading, key, data, Application)) is not None:
            state.applications[app.name] = app
    for key, data in pieces.items():
        if not key.startswith(DEPLOYMENTS):
            continue
        piece = _opened(reading, key, data, _DeploymentPiece)
        if piece is None:
            continue
        if (home := state.applications.get(piece.app_name)) is None:
            reading.unreadable[key] = f"its application {piece.app_name!r} cannot be read"
        else:
            home.deployments[piece.deployment.name] = piece.deployment
    return reading


def _read_whole(pieces: Mapping[str, bytes]) -> Reading:
    reading = Reading(ControllerState())
    whole = _opened(reading, HEADER, pieces[HEADER], _Whole)
    if whole is not None:
        for name in (*_HEADER_FIELDS, "applications"):
            setattr(reading.state, name, getattr(whole, name))
    return reading


_READERS = {1: _read_whole, SCHEMA_VERSION: _read_pieces}


def _opened(reading: Reading, key: str, data: bytes | None, kind: type[T]) -> T | None:
    if data is None:
        return None
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        reading.unreadable[key] = f"it is damaged: {error}"
        return None
