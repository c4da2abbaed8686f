"""`remora plan`: what a deploy would change, told before it changes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from pathlib import Path

import click
import msgspec

from remora.cli.deploy import DeployOptions, read, warn_of_ignored
from remora.cli.errors import CommandError
from remora.config_file.declaration import ApplicationConfig
from remora.core.saved_state import APPS
from remora.engine.local.store import keys_at_rest
from remora.home import Home
from remora.instance import Instance
from remora.wire.plan import ApplicationPlan, DeploymentPlan, Plan

_SAID = {
    "create": "start {after}",
    "roll": "roll: new replicas take the place of {before}, and {after} run after it",
    "reconfigure": "reconfigure in place",
    "scale": "scale from {before} to {after}",
    "options": "take over options that no replica reads",
    "delete": "stop {before}",
}


def show_plan(options: DeployOptions, *, as_json: bool) -> None:
    """Print what deploying this would change.

    Raises:
        ConfigFileError: something in it is wrong.
        CommandError: an application of it could not be deployed; or no instance runs, and the next
            one brings back what the last one served.
    """
    config, request = read(options)
    home = Home.locate()
    instance = Instance.find(home)
    if instance is None:
        kept = [key.removeprefix(APPS) for key in keys_at_rest(home.database, APPS)]
        plan = plan_at_rest(home.root, config.applications, kept)
        click.echo(f"No instance runs in {home.root}: all of this would be new.", err=True)
    else:
        warn_of_ignored(config, instance)
        plan = asyncio.run(instance.plan(request))
    if as_json:
        click.echo(msgspec.json.encode(plan))
    else:
        click.echo("\n".join(lines(plan)))
    if failing := [app for app in plan.applications if app.action == "fail"]:
        raise CommandError(
            f"{len(failing)} applications could not be deployed: "
            f"{', '.join(app.name for app in failing)}.",
            user_traceback="\n\n".join(f"{app.name}: {app.error}" for app in failing),
        )


def plan_at_rest(
    root: Path, applications: Iterable[ApplicationConfig], kept: Collection[str]
) -> Plan:
    """Say what a config would change where nothing runs; no code is imported for that. Pure.

    Args:
        root: the state folder.
        applications: of the config.
        kept: names of applications that the next instance there brings back.

    Raises:
        CommandError: there are some of those: nobody knows how they will be.
    """
    if kept:
        raise CommandError(
            f"No instance runs in {root}, and the next one brings back what the last one served "
            f"({', '.join(sorted(kept))}): start it (`remora start`), and plan then."
        )
    return Plan(
        tuple(
            ApplicationPlan(name=app.name, action="create", route_after=app.route_prefix)
            for app in applications
        )
    )


def lines(plan: Plan) -> list[str]:
    """Say a plan in words. Pure."""
    told = [line for app in plan.applications for line in _application(app)]
    if all(app.action == "none" for app in plan.applications):
        return [*told, "Nothing would change."]
    return [*told, *_peak(plan)]


def _application(app: ApplicationPlan) -> list[str]:
    words = {
        "create": "is new",
        "update": "changes",
        "none": "stays as it is",
        "delete": "is deleted",
        "fail": "could not be deployed: nothing of it changes",
    }
    told = [f"Application {app.name!r} {words[app.action]}."]
    if app.route_before != app.route_after:
        before, after = (route or "none" for route in (app.route_before, app.route_after))
        told.append(f"  route: {before} -> {after}")
    return [*told, *(f"  {each.name}: {_deployment(each)}" for each in app.deployments)]


def _deployment(each: DeploymentPlan) -> str:
    if not each.steps:
        return f"no change, {each.before} replicas"
    steps = [
        _SAID[step].format(before=each.before, after=each.after)
        for step in each.steps
        # A roll says so itself.
        if step != "scale" or "roll" not in each.steps
    ]
    said = "; ".join(steps)
    if each.changed:
        said += f" ({', '.join(each.changed)})"
    extra = each.peak - max(each.before, each.after)
    return said + (f"; {extra} more at the peak" if extra > 0 else "")


def _peak(plan: Plan) -> list[str]:
    """Say what all of it takes when everything is at its peak at once."""
    deployments = [each for app in plan.applications for each in app.deployments]
    replicas = sum(max(0, each.peak - each.before) for each in deployments)
    if not replicas:
        return []
    known = [each for each in deployments if each.replica_bytes is not None]
    size = sum(
        (each.peak - each.before) * (each.replica_bytes or 0)
        for each in known
        if each.peak > each.before
    )
    unknown = sum(
        each.peak - each.before
        for each in deployments
        if each.peak > each.before and each.replica_bytes is None
    )
    memory = f", about {size / 2**20:.0f} MiB" if size else ""
    more = f" and what {unknown} replicas take that never ran here" if unknown else ""
    return [f"At the peak: {replicas} more replicas than now{memory}{more}."]
