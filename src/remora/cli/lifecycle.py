"""`remora start` and `remora shutdown`: an instance that nobody stays with."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from pathlib import Path

import click

from remora.cli.errors import CommandError
from remora.cli.instance import begun, grpc_setup, http_options, say_what_has_no_effect, say_which
from remora.cli.report import nodes_text
from remora.config import ADMIN, LOCAL_ENGINE, AdminOptions, EngineOptions, gRPCOptions
from remora.engine.launch import LaunchSetup
from remora.errors import InstanceError
from remora.home import Home
from remora.instance import Instance
from remora.options.resources import MachineOptions
from remora.types import Seconds
from remora.wire.control import InstanceStatus

#: Agents are up after two seconds; of a node that is slower `remora status` tells.
_NODES_LIMIT_S: Seconds = 8.0


def start_instance(
    host: str | None,
    port: int | None,
    grpc_options: gRPCOptions,
    machine: MachineOptions,
    engine: EngineOptions = LOCAL_ENGINE,
    admin: AdminOptions = ADMIN,
) -> None:
    """Start an instance and leave it running; one that runs already stays as it is.

    Raises:
        CommandError: the options for gRPC cannot be right.
        InstanceError: it cannot be started; says why and what to do.
    """
    grpc = grpc_setup(grpc_options, host, Path.cwd())
    setup = LaunchSetup(http_options(host, port), grpc, machine, engine, admin)
    asked = host is not None or port is not None
    with begun(setup, bound=False, asked=asked) as instance:
        instance = _ready(instance)
        url = instance.wait_ready()
        if instance.joined and instance.was_launched:
            say_what_has_no_effect(instance, setup, asked=asked)
        # The sockets take connections; an answer shows that the controller works.
        status = asyncio.run(instance.status())
    if not instance.joined:
        click.echo(f"Remora runs in {instance.home.root} (pid {instance.pid}).")
        also = f" and gRPC at {instance.grpc_address}" if instance.grpc_address else ""
        click.echo(f"It serves {url or 'no HTTP'}{also}. `remora shutdown -y` ends it.")
        if status.admin_url:
            click.echo(f"Its REST API is at {status.admin_url}; see {status.admin_url}/docs.")
    elif instance.was_launched:
        click.echo(
            f"Joined the instance of the Ray cluster at {instance.cluster} for {instance.home.root} "
            f"(pid {instance.pid}); it serves {url or 'no HTTP'}."
        )
    else:
        click.echo(f"Remora runs in {instance.home.root} already (pid {instance.pid}), at {url}.")
    if len(status.nodes) > 1:
        told = nodes_text(asyncio.run(_when_nodes_are_known(instance, status)))
        if told:
            click.echo(told, err=True)


async def _when_nodes_are_known(instance: Instance, status: InstanceStatus) -> InstanceStatus:
    """Wait a moment for nodes that are being made ready; returns how they are then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_NODES_LIMIT_S), aclosing(instance.watch()) as statuses:
            async for found in statuses:
                status = found
                if not any(node.joining for node in status.nodes):
                    break
    return status


def _ready(begun: Instance) -> Instance:
    """Wait until an instance is up; return it, or that of a program that was a moment quicker.

    Raises:
        InstanceError: none comes up.
    """
    try:
        begun.wait_ready()
    except InstanceError:
        other = Instance.find_other(begun.home, begun.pid)
        if other is None:
            raise
        return other
    return begun


def stop_instance(*, ask: bool) -> None:
    """End the instance of this state folder; without one there is nothing to do.

    Raises:
        CommandError: the user said no, or nothing.
        click.Abort: Ctrl-C instead of an answer.
    """
    home = Home.locate()
    instance = Instance.find(home)
    if instance is None:
        click.echo(f"Nothing to stop: no instance runs in {home.root}.", err=True)
        return
    say_which(instance)
    if ask:
        _require_yes(
            f"Stop the instance in {home.root} (pid {instance.pid}) and everything that it serves?"
        )
    if not asyncio.run(instance.shut_down()):
        click.echo("The controller did not answer: the instance was ended without it.", err=True)
    click.echo("Stopped.")


def _require_yes(question: str) -> None:
    """Ask.

    Raises:
        CommandError: the answer is no, or there is none.
        click.Abort: Ctrl-C instead of an answer.
    """
    try:
        if click.confirm(question):
            return
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo()
        raise CommandError(
            "Nobody answers, so nothing was changed. With -y the instance is stopped without a question."
        ) from None
    raise CommandError("Nothing was changed: the instance goes on.")
