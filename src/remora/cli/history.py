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
from remora.wire.releases import Release, ReleaseStatus

#: A rollback without a number goes to none that ended so.
_NO_WAY_BACK = (ReleaseStatus.FAILED, ReleaseStatus.ROLLED_BACK, ReleaseStatus.REPLACED)


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
    width = max((len(release.outcome) for release in releases), default=0)
    for release in releases:
        click.echo(line(release, width))


def line(release: Release, width: int = 0) -> str:
    """Say in one line what a release was, and what became of it.

    Pure but for the time zone.

    Args:
        release: which one.
        width: of the column that says what became of it, in characters.
    """
    when = _when(release)
    names = ", ".join(release.applications) or "no application"
    what = f"deleted {names}" if release.kind == "delete" else names
    source = f" ({release.source})" if release.source else ""
    # Of a release with one application it says so already.
    some = release.rolled_back if set(release.rolled_back) != set(release.applications) else ()
    back = f"  rolled back: {', '.join(some)}" if some else ""
    now = "  <- declared now" * release.in_effect
    became = f"{release.outcome or '-':<{width}}  "
    why = f"  {release.reason}" if release.reason else ""
    return f"{release.number:>5}  {when}  {became}{what}{source}{back}{now}{why}"


def _when(release: Release) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(release.unix_s))


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
    """Go back to what a release said; 0: to the last one that worked and says something else.

    Raises:
        CommandError: no instance runs, or it does not come up.
        ReleaseError: there is no such release.
    """
    asyncio.run(_roll_back(find(), number, wait=wait))


async def _roll_back(instance: Instance, number: int, *, wait: bool) -> None:
    release = await instance.roll_back(number)
    releases = await instance.releases()
    made = next(each for each in releases if each.number == release)
    for said in where_to(releases, made):
        click.echo(said)
    if wait:
        await follow(instance, release, list(made.applications))
        click.echo(f"Release {release} is in effect.")


def where_to(releases: list[Release], made: Release) -> list[str]:
    """Say which release a rollback goes to, and why to none of those since. Pure but for the zone.

    Args:
        releases: those that are kept.
        made: the one that the rollback made.
    """
    to = next((each for each in releases if each.number == made.rollback_to), None)
    if to is None:
        return [f"Release {made.number} is accepted: {made.source}."]
    came = ", ".join(part for part in (to.source, _when(to)) if part)
    passed = [
        f"Release {each.number} is passed over: {each.outcome}."
        for each in releases
        if to.number < each.number < made.number and each.outcome in _NO_WAY_BACK
    ]
    back = f"Release {made.number} is accepted: back to what release {to.number} said ({came})."
    return [*passed, back]
