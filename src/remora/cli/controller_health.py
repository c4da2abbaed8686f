"""`remora controller-health`: how the controller itself is."""

from __future__ import annotations

import asyncio

import click
import msgspec
import yaml

from remora.cli.instance import find


def show_controller_health(*, as_json: bool) -> None:
    """Print how the controller of the instance in this state folder is.

    Raises:
        CommandError: no instance runs there.
        InstanceError: its controller does not answer.
    """
    health = msgspec.to_builtins(asyncio.run(find().controller_health()))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(health)))
    else:
        click.echo(yaml.safe_dump(health, sort_keys=False), nl=False)
