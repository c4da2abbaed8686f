"""Instances for the end-to-end tests: each in a state folder of its own, on a free port."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.instances import NO_PORT, REMORA, Command, Instance

from remora.config import AdminOptions, HTTPOptions
from remora.wire.grpc import GrpcSetup


def _folder() -> Path:
    # Not pytest's own temporary folder: sockets live below it, and their paths must be short.
    return Path(tempfile.mkdtemp(prefix="remora-e-"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Instance]:
    """One instance for all tests of a module. Each test deploys under names of its own."""
    folder = _folder()
    instance = Instance(folder, HTTPOptions(port=0, max_body_bytes=400_000_000))
    try:
        yield instance
    finally:
        try:
            instance.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


StartInstance = Callable[..., Instance]


@pytest.fixture
def start_instance() -> Iterator[StartInstance]:
    """Return a function that starts an instance which this test may break."""
    instances: list[Instance] = []
    folders: list[Path] = []

    def start(
        home: Path | None = None,
        grpc: GrpcSetup | None = None,
        admin: AdminOptions = NO_PORT,
        **http: Any,
    ) -> Instance:
        if home is None:
            home = _folder()
            folders.append(home)
        made = Instance(home, HTTPOptions(**{"port": 0, **http}), grpc, admin=admin)
        instances.append(made)
        return made

    try:
        yield start
    finally:
        try:
            for instance in instances:
                instance.end()
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)


StartCommand = Callable[..., Command]


@pytest.fixture
def home() -> Iterator[Path]:
    """A state folder of this test alone, with a short path."""
    folder = _folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def command(tmp_path: Path, home: Path) -> Iterator[StartCommand]:
    """Return a function that starts a command in the test's folder; nothing of it is left after."""
    commands: list[Command] = []

    def start(*words: str, home: Path = home, **options: Any) -> Command:
        made = Command(words, options.pop("folder", tmp_path), home, **options)
        commands.append(made)
        return made

    yield start
    for made in commands:
        made.end()


@pytest.fixture
def remora(command: StartCommand) -> StartCommand:
    """Return a function that starts `remora <words>`."""

    def start(*words: str, **options: Any) -> Command:
        return command(REMORA, *words, **options)

    return start
