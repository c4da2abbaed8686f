"""Commands about what is deployed: now, before, and what would be.

Rules: no work in here. A command imports what it needs when it is called, so that `remora version`
does not pay for `remora status`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from remora.cli.flags import (
    app_dir_flag,
    deploy_options,
    grpc_flags,
    grpc_of,
    target_flags,
    wait_flag,
)


@click.command()
@target_flags
@wait_flag
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Wait no longer than this; what is not there by then goes on.  [default: no limit]",
)
def deploy(wait: bool, timeout_s: float | None, **said: Any) -> None:
    """Deploy what a config file declares, or one application, to the instance that runs.

    What an earlier config declared and this one does not is deleted.
    """
    from remora.cli.deploy import deploy as work

    work(deploy_options(said), wait=wait, timeout_s=timeout_s)


@click.command()
@target_flags
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(as_json: bool, **said: Any) -> None:
    """Print what `remora deploy` would change, and change nothing."""
    from remora.cli.plan import show_plan

    show_plan(deploy_options(said), as_json=as_json)


@click.command()
@click.argument("targets", metavar="MODULE:APP...", nargs=-1, required=True)
@app_dir_flag
@click.option(
    "-o",
    "--output-path",
    type=click.Path(path_type=Path),
    help="File to write.  [default: standard output]",
)
@grpc_flags
def build(
    targets: tuple[str, ...],
    app_dir: Path,
    output_path: Path | None,
    **said: Any,
) -> None:
    """Write the config file of applications, with the options that their code sets."""
    from remora.cli.build import write_config

    write_config(targets, app_dir.resolve(), output_path, grpc_of(said))


@click.command()
@click.option("-n", "--name", help="Show that of this application only.")
def config(name: str | None) -> None:
    """Print what was declared last, as it was written."""
    from remora.cli.deploy import show_config

    show_config(name)


@click.command()
def schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    from remora.cli.deploy import print_schema

    print_schema()


@click.command()
@click.argument("name")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is gone.")
def delete(name: str, wait: bool) -> None:
    """Delete an application: ongoing requests finish first."""
    from remora.cli.deploy import delete as work

    work(name, wait=wait)


@click.command()
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object for each release.")
def history(limit: int, as_json: bool) -> None:
    """Show what was deployed when and what became of it, the latest first."""
    from remora.cli.history import show_history

    show_history(limit, as_json=as_json)


@click.command()
@click.argument("before", required=False)
@click.argument("after", required=False)
def diff(before: str | None, after: str | None) -> None:
    """Show what differs between two releases, or a release and a config file.

    BEFORE is the config before AFTER unless it is named, and AFTER the one that is declared now. A
    config file on its own is compared with what is declared now: `+` is what a deploy of it adds.
    """
    from remora.cli.history import show_diff

    show_diff(before, after)


@click.command()
@click.argument("release", type=click.IntRange(1), required=False)
@wait_flag
def rollback(release: int | None, wait: bool) -> None:
    """Go back to what RELEASE deployed.

    Without a number: to the last config before the present one that was in effect and says something else.
    """
    from remora.cli.history import roll_back

    roll_back(release or 0, wait=wait)
