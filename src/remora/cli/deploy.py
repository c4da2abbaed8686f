"""`remora deploy`, `remora config` and `remora delete`: what is declared, and its way into effect."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from remora.build.graph import surroundings_of_this_process
from remora.build.submit import config_request, one_application
from remora.cli.errors import CommandError, UsageError
from remora.cli.instance import find
from remora.cli.progress import SETTLED, progress
from remora.cli.report import address
from remora.cli.target import parse_arguments, parse_target
from remora.config import ProxyLocation, gRPCOptions, nearest
from remora.config_file import declaration
from remora.config_file import read as config_file
from remora.config_file.declaration import DeployConfig
from remora.core.status_text import failure_texts
from remora.current import refuse_other_options
from remora.errors import ConfigError
from remora.instance import Instance
from remora.types import DEFAULT_APP_NAME, Seconds
from remora.wire.control import ApplicationStatus, ConfigRequest, InstanceStatus, Surroundings

_FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class DeployOptions:
    """What a command line says of what is to be deployed; None: left open there."""

    target: str
    arguments: tuple[str, ...] = ()
    app_dir: Path = Path()
    name: str | None = None
    route_prefix: str | None = "/"
    runtime_env: str | None = None
    runtime_env_json: str | None = None
    working_dir: str | None = None


def is_file(target: str) -> bool:
    """Tell a config file from an import path, by its name."""
    return target.endswith(_FILES)


def read(options: DeployOptions) -> tuple[DeployConfig, ConfigRequest]:
    """Read what a command line names: a config file, or an import path.

    Raises:
        ConfigFileError: something in it is wrong.
        UsageError: the command line is.
    """
    place = _place(options.app_dir)
    if is_file(options.target):
        _refuse_with_file(options)
        path = Path(options.target)
        config = config_file.load(path)
        base = path.absolute().parent
        return config, config_request(config, str(path), place=place, base=base)
    target = parse_target(options.target)
    given = one_application(
        options.name or DEFAULT_APP_NAME,
        options.route_prefix,
        str(target),
        dict(parse_arguments(options.arguments)),
        _runtime_env(options),
    )
    config = declaration.parse(given)
    return config, config_request(config, str(target), place=place, base=Path.cwd())


def _place(app_dir: Path) -> Surroundings:
    """Import from the folder of the command line first, then from where this command would."""
    own = surroundings_of_this_process()
    folder = str(app_dir.absolute())
    paths = dict.fromkeys((folder, *own.sys_path))
    return Surroundings(sys_path=tuple(paths), cwd=folder)


def _refuse_with_file(options: DeployOptions) -> None:
    if options.arguments:
        raise UsageError(
            f"{' '.join(options.arguments)!r} cannot go with a config file: write them into it, "
            "as args of their application."
        )
    ignored = {
        "--name": options.name,
        "--runtime-env": options.runtime_env,
        "--runtime-env-json": options.runtime_env_json,
        "--working-dir": options.working_dir,
    }
    for flag, value in ignored.items():
        if value is not None:
            click.echo(f"{flag} has no effect: the config file says it.", err=True)


def _runtime_env(options: DeployOptions) -> dict[str, Any]:
    if options.runtime_env is not None and options.runtime_env_json is not None:
        raise UsageError("--runtime-env and --runtime-env-json exclude each other.")
    found: Any = {}
    if options.runtime_env is not None:
        try:
            text = Path(options.runtime_env).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{options.runtime_env} cannot be read: {error}") from None
        found, _ = config_file.read(text, options.runtime_env)
    elif options.runtime_env_json is not None:
        try:
            found = json.loads(options.runtime_env_json)
        except ValueError as error:
            raise UsageError(f"--runtime-env-json is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("A runtime environment is a mapping, such as {env_vars: {A: b}}.")
    if options.working_dir is not None:
        found["working_dir"] = str(Path(options.working_dir).absolute())
    return found


# --------------------------------------------------------------------------------------- commands


def deploy(options: DeployOptions, *, wait: bool, timeout_s: Seconds | None = None) -> None:
    """Hand in a config and follow it until it has taken effect.

    Args:
        options: what to deploy.
        wait: False: return when it is accepted.
        timeout_s: wait no longer than this for it to take effect; None: as long as it takes.

    Raises:
        ConfigFileError: something in it is wrong.
        UsageError: not to wait, and a time to wait.
        CommandError: no instance runs, an application does not come up, or not in time.
    """
    if timeout_s is not None and not wait:
        raise UsageError("--no-wait and --timeout-s exclude each other.")
    config, request = read(options)
    instance = find()
    warn_of_ignored(config, instance)
    asyncio.run(_deploy(instance, request, wait=wait, timeout_s=timeout_s))


async def _deploy(
    instance: Instance, request: ConfigRequest, *, wait: bool, timeout_s: Seconds | None
) -> None:
    names = [app.name for app in request.applications]
    gone = undeclared(await instance.status(), names)
    release = await instance.submit(request)
    for name in gone:
        click.echo(f"Application {name!r} is not declared any more, so it is deleted.", err=True)
    if not wait:
        click.echo(f"Release {release} is accepted. `remora status` shows how far it is.")
        return
    try:
        async with asyncio.timeout(timeout_s):
            await follow(instance, release, names)
    except TimeoutError:
        raise CommandError(
            f"Release {release} is not in effect after {timeout_s:g} s, and goes on. `remora status` "
            "shows how far it is; another deploy, or `remora rollback`, takes its place."
        ) from None
    click.echo(f"Release {release} is in effect.")


def undeclared(status: InstanceStatus, names: list[str]) -> list[str]:
    """Name the applications that an earlier config declared, and one with these names does not.

    Pure.
    """
    return sorted(
        name
        for name, app in status.applications.items()
        if app.source == "declarative" and app.status != "DELETING" and name not in names
    )


async def follow(instance: Instance, release: int, names: list[str]) -> InstanceStatus:
    """Tell how a release comes up, until every application of it has settled.

    Raises:
        CommandError: one of them will not serve, or somebody has deployed something else.
    """
    told = progress()
    status: InstanceStatus | None = None
    try:
        async with aclosing(instance.watch()) as statuses:
            async for status in statuses:
                ours = {name: status.applications.get(name) for name in names}
                _require_ours(ours, release)
                present = {name: app for name, app in ours.items() if app is not None}
                told.show(present)
                if all(app.status in SETTLED for app in present.values()):
                    break
            else:
                status = None
    finally:
        told.close()
    if status is None:
        raise CommandError(f"The instance in {instance.home.root} has ended.")
    _report(status, names)
    return status


def _require_ours(apps: dict[str, ApplicationStatus | None], release: int) -> None:
    """Nobody waits for what somebody else has replaced."""
    for name, app in apps.items():
        if app is None or app.status == "DELETING":
            raise CommandError(f"Application {name!r} was deleted while release {release} came up.")
        if app.release > release:
            raise CommandError(
                f"Release {release} was replaced by release {app.release}, which came while it "
                f"came up: see `remora history`. Application {name!r} is {app.status}."
            )


def _report(status: InstanceStatus, names: list[str]) -> None:
    apps = [status.applications[name] for name in names]
    failed = [app for app in apps if app.status != "RUNNING" or app.failure]
    for app in apps:
        if app not in failed:
            name = app.name
            where = address(status.http_url, app.route_prefix)
            click.echo(f"Application {name!r} is ready{f' at {where}' if where else '.'}")
    if failed:
        raise CommandError(
            f"{len(failed)} of {len(names)} applications could not be deployed: "
            f"{', '.join(app.name for app in failed)}. Mend what is said above and deploy again.",
            user_traceback="\n\n".join(failure_texts(failed)),
        )


def warn_of_ignored(config: DeployConfig, instance: Instance) -> None:
    """Say which options of a config differ from those of the instance, which keeps its own."""
    if not instance.joined:
        return
    told: list[str] = []
    if config.http is not None:
        try:
            refuse_other_options(instance, config.http)
        except ConfigError as error:
            told.append(error.field)
    if config.grpc is not None and config.grpc != gRPCOptions() and not instance.grpc_address:
        told.append("grpc_options")
    is_disabled = config.location is ProxyLocation.Disabled
    if config.location is not None and is_disabled == bool(instance.wait_ready()):
        told.append("proxy_location")
    told += ["admin_options"] * (config.admin is not None)
    told += ["logging_config"] * (config.logging is not None)
    told += ["tracing_config"] * (config.tracing is not None)
    if config.engine is not None and config.engine.engine != instance.engine:
        told.append("engine")
    for field in told:
        click.echo(
            f"{field} has no effect on the instance that runs; `remora shutdown -y` and a new "
            "start change it.",
            err=True,
        )


def show_config(name: str | None) -> None:
    """Print what was declared, as it was written, one document for each application.

    All of it is a config file again: without a name it says the share of capacity, too.

    Raises:
        CommandError: no instance runs, or there is no application of that name.
    """
    instance = find()
    configs = asyncio.run(instance.configs())
    if name is not None and name not in configs:
        raise CommandError(
            f"No config has been deployed for application {name!r}.{nearest(name, configs)}"
        )
    if not configs:
        click.echo("No configuration was found.", err=True)
        return
    if name is not None:
        click.echo(to_yaml(json.loads(configs[name])), nl=False)
        return
    capacity = asyncio.run(instance.status()).target_capacity
    click.echo(config_text(configs.values(), capacity), nl=False)


def config_text(applications: Iterable[bytes], target_capacity: float | None) -> str:
    """Write what was declared as a config file of several documents. Pure."""
    shown = [json.loads(one) for one in applications]
    if target_capacity is not None:
        shown.append({"target_capacity": target_capacity})
    return "---\n".join(map(to_yaml, shown))


def to_yaml(value: Any) -> str:
    """Write a value as people write YAML. Pure."""
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text


def delete(name: str, *, wait: bool) -> None:
    """Delete an application and wait until it is gone.

    Raises:
        CommandError: no instance runs, or it has no application of that name.
    """
    instance = find()
    status = asyncio.run(instance.status())
    if name not in status.applications:
        known = ", ".join(sorted(status.applications)) or "none is deployed"
        raise CommandError(
            f"There is no application {name!r} (deployed: {known})."
            f"{nearest(name, status.applications)}"
        )

    async def work() -> None:
        await instance.delete([name])
        if wait:
            await instance.wait_deleted([name])

    asyncio.run(work())
    gone = "is gone" if wait else "is being deleted: ongoing requests finish first"
    click.echo(f"Application {name!r} {gone}.")


def print_schema() -> None:
    """Print the JSON Schema of a config file."""
    from remora.config_file.schema import json_schema

    json.dump(json_schema(), sys.stdout, indent=2)
    click.echo()
