"""The instance that a command works with: found running, or launched for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from remora.cli.errors import CommandError
from remora.config import (
    ADMIN,
    EngineOptions,
    HTTPOptions,
    ProxyLocation,
    gRPCOptions,
    with_absolute_paths,
)
from remora.engine.claim import other_version
from remora.engine.launch import LaunchSetup, wait_while_ending
from remora.home import Home
from remora.instance import Instance
from remora.options.instance import ADDRESS_VARIABLE
from remora.wire.grpc import GrpcSetup, digest

#: Seconds that an instance without any use has to end, before it is killed.
_ABANDON_LIMIT_S = 8.0


def http_options(host: str | None, port: int | None) -> HTTPOptions:
    """Fill in the defaults for what the command line leaves open. Pure."""
    defaults = HTTPOptions()
    return HTTPOptions(
        host=defaults.host if host is None else host, port=defaults.port if port is None else port
    )


def grpc_setup(options: gRPCOptions, host: str | None, folder: Path) -> GrpcSetup | None:
    """Turn the options for gRPC into what proxies are given; None: none was set.

    Args:
        options: from the command line.
        host: where HTTP listens; None: the default.
        folder: modules of servicer functions are looked for here first.

    Raises:
        CommandError: they cannot be right.
    """
    if options == gRPCOptions():
        return None
    from remora.build.grpc_services import grpc_setup as make

    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return make(options, http_options(host, None).host)
    except ImportError as error:
        raise CommandError(str(error)) from None


@contextmanager
def begun(setup: LaunchSetup, *, bound: bool, asked: bool) -> Iterator[Instance]:
    """Find the instance of this state folder, or launch one without waiting for it.

    Leaving the `with` block ends a bound instance, and one that was launched for a command that
    failed. An instance that ran before is never ended.

    Args:
        setup: how it is to be.
        bound: a launched instance ends with this process, however that ends.
        asked: whether the command line says where HTTP is to listen.

    Raises:
        CommandError: the engine is not installed.
        InstanceError: no process can be started here.
    """
    home = Home.locate()
    wait_while_ending(home)
    found = Instance.find(home)
    if found is not None:
        _say_version(found)
        _require_engine(found, setup.engine)
        say_what_has_no_effect(found, setup, asked=asked)
        yield found
        return
    door = with_absolute_paths(setup.http or HTTPOptions())
    if setup.engine is not None and setup.engine.proxy_location == ProxyLocation.Disabled:
        door = msgspec.structs.replace(door, host=None)
    try:
        launched = Instance.launch(home, replace(setup, http=door), bound=bound)
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from None
    try:
        yield launched
    except BaseException:
        launched.force_end(_ABANDON_LIMIT_S)
        raise
    # Gone when this process is: what is run next in this folder finds it free, and its port too.
    launched.abandon()


def _require_engine(found: Instance, engine: EngineOptions | None) -> None:
    """Serve nothing elsewhere than where it was asked for.

    Raises:
        CommandError: the instance runs on another engine.
    """
    if engine is not None and engine.engine == "ray" and found.engine != "ray":
        where = engine.address or "ray"
        raise CommandError(
            f"A Ray cluster is asked for ({where}, by --engine, --address or the environment variable "
            f"{ADDRESS_VARIABLE}), and an instance runs in {found.home.root} already (pid {found.pid}), "
            "on this machine alone. End it with `remora shutdown -y`, name another folder by REMORA_HOME, "
            "or say --engine local to use it."
        )


def say_what_has_no_effect(found: Instance, wanted: LaunchSetup, *, asked: bool) -> None:
    """Say what was asked for in vain, of an instance that runs already or was joined.

    Args:
        found: that instance.
        wanted: how one was to be started.
        asked: whether that says where HTTP is to listen.
    """
    runs = (
        f"The instance of the Ray cluster at {found.cluster} runs already"
        if found.was_launched
        else f"An instance runs in {found.home.root} already (pid {found.pid})"
    )
    lines = []
    if asked:
        url = found.wait_ready() or "no HTTP"
        lines.append(f"{runs} and serves {url}: host and port have no effect on it.")
    if wanted.grpc is not None and found.grpc_digest != digest(wanted.grpc):
        address = found.grpc_address or "no"
        lines.append(f"{runs} and serves {address} gRPC: options for gRPC have no effect on it.")
    if wanted.machine:
        lines.append(f"{runs}: what its machine has was said or found when it started.")
    if wanted.admin not in (None, ADMIN):
        lines.append(f"{runs}: options of the REST API have no effect on it.")
    for line in lines:
        print(line, file=sys.stderr)


def find() -> Instance:
    """Find the instance of this state folder.

    Raises:
        CommandError: none runs there.
    """
    home = Home.locate()
    found = Instance.find(home)
    if found is None:
        address = os.environ.get(ADDRESS_VARIABLE)
        joins = f" ({ADDRESS_VARIABLE}={address} is for these)" if address else ""
        raise CommandError(
            f"No instance runs in {home.root}. `remora run module:app` or `remora start` "
            f"starts one, or joins that of a cluster{joins}; the environment variable REMORA_HOME names "
            "another folder."
        )
    say_which(found)
    _say_version(found)
    return found


def _say_version(found: Instance) -> None:
    if found.owner is not None and (said := other_version(found.owner)):
        print(said, file=sys.stderr)


def say_which(found: Instance) -> None:
    """Say which instance a command is about, where the environment names another place."""
    address = os.environ.get(ADDRESS_VARIABLE, "")
    if not address or (found.engine == "ray" and address in ("auto", "local", found.cluster)):
        return
    where = f"on the Ray cluster {found.cluster}" if found.cluster else "on this machine alone"
    print(
        f"This is about the instance in {found.home.root}, which runs {where}: {ADDRESS_VARIABLE}={address} "
        "is for the start of one, and REMORA_HOME names another folder.",
        file=sys.stderr,
    )
