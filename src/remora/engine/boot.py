"""The first steps of a process of an instance, and its answer to who launched it.

Rules: standard library and the lowest layer of the package only; the supervisor imports this.
"""

from __future__ import annotations

import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class StartError(Exception):
    """The process cannot start, for the reason in the message."""


class UnfitNodeError(StartError):
    """It cannot start on a node; on another one it may.

    Attributes:
        node_id: of that node.
    """

    def __init__(self, reason: str, node_id: str) -> None:
        super().__init__(reason, node_id)
        self.node_id = node_id

    def __str__(self) -> str:
        return str(self.args[0])


def close_strangers(keep: Collection[int | None]) -> None:
    """Close what the owning program left open for its children by accident."""
    for path in list(Path("/proc/self/fd").iterdir()):
        fd = int(path.name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the folder


def read_grpc(fd: int | None) -> dict[str, Any] | None:
    """Read the setup for gRPC from a file in memory; None: there is none."""
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        setup: dict[str, Any] = json.load(file)
    return setup


def answer(fd: int | None, message: dict[str, Any]) -> None:
    """Tell who launched this process how it went, once."""
    if fd is None:
        return
    try:
        os.write(fd, json.dumps(message, separators=(",", ":")).encode() + b"\n")
    except OSError:
        pass  # the owner is gone, which its own pipe says as well
    os.close(fd)


def set_environment(env: Mapping[str, str]) -> None:
    """Take over environment variables.

    Raises:
        StartError: one cannot be set.
    """
    try:
        os.environ.update(env)
    except ValueError as error:
        raise StartError(f"an environment variable cannot be set: {error}") from None
    if "TZ" in env:
        time.tzset()


def load(entrypoint: str) -> Callable[..., Any]:
    """Import `package.module:function`.

    Raises:
        StartError: there is no such function, or importing it fails.
    """
    module, colon, name = entrypoint.partition(":")
    if not colon:
        raise StartError(f"{entrypoint!r} is not of the form package.module:function")
    try:
        entry = getattr(importlib.import_module(module), name)
    # Border: importing runs code that is not ours, which may raise anything.
    except BaseException as error:  # noqa: BLE001
        if not isinstance(error, ModuleNotFoundError | AttributeError):
            traceback.print_exc()
        raise StartError(
            f"{entrypoint} cannot be imported: {type(error).__name__}: {error}"
        ) from None
    if not callable(entry):
        raise StartError(f"{entrypoint} is not callable")
    found: Callable[..., Any] = entry
    return found


@dataclass(frozen=True)
class InstanceOptions:
    """How an instance is to be, as the process at its top is told.

    Attributes:
        home: state folder.
        http: the user's `HTTPOptions` as a dict.
        controller: entry point of the controller.
        proxy: entry point of a proxy.
        grace_s: from being asked to end until what still runs is killed.
        owner_fd: reading end of a pipe; its end means that the owning program is gone.
        ready_fd: writing end of a pipe; gets one line when the instance is up or cannot be.
        grpc_fd: a file in memory with the gRPC setup as JSON; None: no gRPC.
        grpc_digest: tells that setup from others.
        machine: the user's `MachineOptions` as a dict.
        admin: the user's `AdminOptions` as a dict.
        logging: the user's `LoggingConfig` as a dict; None: the defaults.
        tracing: the user's `TracingConfig` as a dict; None: nothing is traced.
    """

    home: str
    http: Mapping[str, Any]
    controller: str
    proxy: str
    grace_s: float
    owner_fd: int | None = None
    ready_fd: int | None = None
    grpc_fd: int | None = None
    grpc_digest: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    admin: Mapping[str, Any] = field(default_factory=dict)
    logging: Mapping[str, Any] | None = None
    tracing: Mapping[str, Any] | None = None
