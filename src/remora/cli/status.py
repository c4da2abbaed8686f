"""`remora status`: what runs, as a table, as JSON, once or after every change."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

import click
import msgspec

from remora.cli.instance import find
from remora.cli.report import render, select
from remora.instance import Instance
from remora.wire.control import InstanceStatus


def show_status(name: str | None, *, as_json: bool, watch: bool) -> None:
    """Print the status of the instance in this state folder.

    Raises:
        CommandError: no instance runs there, or it has no application of that name.
    """
    instance = find()
    if not watch:
        _print(select(asyncio.run(instance.status()), name), as_json=as_json)
        return
    try:
        asyncio.run(_follow(instance, name, as_json=as_json))
    except KeyboardInterrupt:
        # The way to end it.
        return
    click.echo("The instance has ended.", err=True)


async def _follow(instance: Instance, name: str | None, *, as_json: bool) -> None:
    if not as_json and sys.stdout.isatty():
        await _follow_live(instance, name)
        return
    async with aclosing(instance.watch()) as statuses:
        async for status in statuses:
            _print(select(status, name), as_json=as_json)


async def _follow_live(instance: Instance, name: str | None) -> None:
    from rich.live import Live

    with Live(auto_refresh=False, screen=True) as live:
        async with aclosing(instance.watch()) as statuses:
            async for status in statuses:
                live.update(render(select(status, name)), refresh=True)


def _print(status: InstanceStatus, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(status))
        return
    from rich.console import Console

    # Into a pipe, nothing is cut or wrapped at some accidental width.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(render(status))
