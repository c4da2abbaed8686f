"""`remora history`, `remora diff` and `remora rollback`: what was deployed when, and back to it."""

from __future__ import annotations

import asyncio
import difflib
import json
import time
from pathlib import Path

import click
import msgspec

from remora.cli.deploy import follow, is_file, to_yaml
from remora.cli.errors import CommandError, UsageError
from remora.cli.instance import find
from remora.instance import Instance
from remora.wire.releases import Release


def show_history(limit: int, *, as_json: bool) -> None:
    """Print the latest releases, the newest first.

    Raises:
        CommandError: no instance runs.
    """
    releases = asyncio.run(find().releases())[::-1][:limit]
    if as_json:
        for release in releases:
            told = msgspec.to_builtins(release)
            click.echo(json.dumps({**told, "said": json.loads(release.said)}))
        return
    if not releases:
        click.echo("Nothing was deployed yet.", err=True)
    for release in releases:
        click.echo(line(release))


def line(release: Release) -> str:
    """Say in one line what a release was. Pure but for the time zone."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(release.unix_s))
    names = ", ".join(release.applications) or "no application"
    what = f"deleted {names}" if release.kind == "delete" else names
    source = f" ({release.source})" if release.source else ""
    back = f"  rolled back: {', '.join(release.rolled_back)}" if release.rolled_back else ""
    now = "  <- declared now" * release.in_effect
    return f"{release.number:>5}  {when}  {what}{source}{back}{now}"


def show_diff(before: str | None, after: str | None) -> None:
    """Print what differs between two releases, or a release and a config file.

    Raises:
        CommandError: no instance runs, or there are no such releases.
    """
    releases = asyncio.run(find().releases())
    if before is not None and after is None and is_file(before):
        # What a deploy of the file would change.
        before, after = _present(releases), before
    old, old_name = _text(before or _default_before(releases), releases)
    new, new_name = _text(after or _present(releases), releases)
    shown = list(difflib.unified_diff(old, new, old_name, new_name, lineterm=""))
    click.echo("\n".join(shown) if shown else f"{old_name} and {new_name} say the same.")


def _present(releases: list[Release]) -> str:
    number = next((each.number for each in releases if each.in_effect), None)
    if number is None:
        raise CommandError("No config was deployed: name two releases of `remora history`.")
    return str(number)


def _default_before(releases: list[Release]) -> str:
    present = int(_present(releases))
    # A deletion of something declared tells what it left.
    configs = [
        each
        for each in releases
        if each.number < present
        and (each.kind == "config" or (each.kind == "delete" and b'"applications"' in each.said))
    ]
    if not configs:
        raise CommandError(f"There is no config before release {present} to compare it with.")
    return str(configs[-1].number)


def _text(which: str, releases: list[Release]) -> tuple[list[str], str]:
    """Write a release or a file as YAML."""
    if is_file(which):
        from remora.config_file.read import load

        given = load(Path(which)).given
        kept = {key: given[key] for key in ("applications", "target_capacity") if key in given}
        return to_yaml(kept).splitlines(), which
    if not which.isdecimal():
        raise UsageError(f"{which!r} is neither the number of a release nor a config file.")
    found = next((each for each in releases if each.number == int(which)), None)
    if found is None:
        known = f"{releases[0].number} to {releases[-1].number}" if releases else "none"
        raise CommandError(f"There is no release {which} (kept: {known}).")
    return to_yaml(json.loads(found.said)).splitlines(), f"release {which}"


def roll_back(number: int, *, wait: bool) -> None:
    """Go back to what a release said; 0: to the config before the present one.

    Raises:
        CommandError: no instance runs, or it does not come up.
        ReleaseError: there is no such release.
    """
    asyncio.run(_roll_back(find(), number, wait=wait))


async def _roll_back(instance: Instance, number: int, *, wait: bool) -> None:
    release = await instance.roll_back(number)
    made = next(each for each in await instance.releases() if each.number == release)
    click.echo(f"Release {release} is accepted: {made.source}.")
    if wait:
        await follow(instance, release, list(made.applications))
        click.echo(f"Release {release} is in effect.")
