"""`remora start` and `remora shutdown`: an instance that nobody stays with."""

from __future__ import annotations

import asyncio

import click

from remora.cli.instance import Instance, wait_gone
from remora.control.client import ControlClient
from remora.engine.local.launch import Owner, end, find_owner
from remora.errors import InstanceError
from remora.home import Home

#: Seconds that the controller has to say that it heard of the shutdown. The draining comes after.
_HEARD_LIMIT_S = 10.0


def start_instance(host: str | None, port: int | None) -> None:
    """Start an instance and leave it running; one that runs already stays as it is.

    Raises:
        InstanceError: it cannot be started; says why and what to do.
    """
    with Instance.begin(host, port, bound=False) as instance:
        url = instance.wait_ready()
        # The sockets take connections; an answer shows that the controller works.
        asyncio.run(instance.status())
    if not instance.joined:
        click.echo(f"Remora runs in {instance.home.root} (pid {instance.pid}).")
        click.echo(f"It serves {url or 'no HTTP'}. `remora shutdown -y` ends it.")
    else:
        click.echo(f"Remora runs in {instance.home.root} already (pid {instance.pid}), at {url}.")


def stop_instance(*, ask: bool) -> None:
    """End the instance of this state folder; without one there is nothing to do.

    Raises:
        click.Abort: the user said no.
    """
    home = Home.locate()
    owner = find_owner(home)
    if owner is None:
        click.echo(f"Nothing to stop: no instance runs in {home.root}.", err=True)
        return
    if ask:
        click.confirm(
            f"Stop the instance in {home.root} (pid {owner.pid}) and everything that it serves?",
            abort=True,
        )
    asyncio.run(_stop(home, owner))
    click.echo("Stopped.")


async def _stop(home: Home, owner: Owner) -> None:
    try:
        async with asyncio.timeout(_HEARD_LIMIT_S):
            async with ControlClient(home) as client:
                await client.shutdown()
    except (InstanceError, TimeoutError):
        click.echo("The controller does not answer: ending the instance without it.", err=True)
        await asyncio.to_thread(end, owner)
    await wait_gone(owner.pid)
