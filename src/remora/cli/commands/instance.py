"""Commands that begin, end and look at an instance.

Rules: no work in here. A command imports what it needs when it is called, so that `remora version`
does not pay for `remora status`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from remora.cli.flags import (
    PORT,
    admin_flags,
    admin_of,
    app_dir_flag,
    arguments,
    engine_flags,
    engine_of,
    grpc_flags,
    grpc_of,
    machine_flags,
    machine_of,
    name_flag,
)


@click.command()
@click.argument("target", metavar="CONFIG|MODULE:APP")
@arguments
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=PORT, help="Port to listen on; 0 takes a free one.  [default: 8000]")
@app_dir_flag
@name_flag
@click.option(
    "--route-prefix", default="/", show_default=True, help="Path below which it is served."
)
@click.option("-r", "--reload", is_flag=True, help="Deploy again when a file in --app-dir changes.")
@click.option(
    "--blocking/--non-blocking",
    default=True,
    show_default=True,
    help="Stay until Ctrl-C and then stop, or return when the application is ready and leave it running.",
)
@admin_flags
@engine_flags
@grpc_flags
@machine_flags
def run(
    target: str,
    arguments: tuple[str, ...],
    host: str | None,
    port: int | None,
    app_dir: Path,
    name: str,
    route_prefix: str,
    reload: bool,
    blocking: bool,
    **said: Any,
) -> None:
    """Serve one application, or what a config file declares.

    MODULE:APP names an application, or a function that builds one from the KEY=VALUE arguments.
    """
    from remora.cli.run import RunOptions, run_application

    run_application(
        RunOptions(
            target=target,
            arguments=arguments,
            host=host,
            port=port,
            app_dir=app_dir.resolve(),
            name=name,
            route_prefix=route_prefix,
            reload=reload,
            blocking=blocking,
            grpc=grpc_of(said),
            machine=machine_of(said),
            engine=engine_of(said),
            admin=admin_of(said),
        )
    )


@click.command()
@click.option("--http-host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--http-port", type=PORT, help="Port; 0 takes a free one.  [default: 8000]")
@click.option(
    "--proxy-location",
    type=click.Choice(["EveryNode", "HeadOnly", "Disabled"]),
    default="EveryNode",
    show_default=True,
    help="On which nodes of a cluster proxies run.",
)
@admin_flags
@engine_flags
@grpc_flags
@machine_flags
def start(
    http_host: str | None,
    http_port: int | None,
    proxy_location: str,
    **flags: Any,
) -> None:
    """Start an empty instance in the background, and return when it is up."""
    from remora.cli.lifecycle import start_instance
    from remora.config import admin_options

    start_instance(
        http_host,
        http_port,
        grpc_of(flags),
        machine_of(flags),
        engine_of(flags, proxy_location),
        admin_options(admin_of(flags)),
    )


@click.command()
@click.option("-n", "--name", help="Show this application only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or one per change.")
@click.option("-w", "--watch", is_flag=True, help="Keep showing changes until Ctrl-C.")
def status(name: str | None, as_json: bool, watch: bool) -> None:
    """Show what runs: processes, applications, deployments, replicas."""
    from remora.cli.status import show_status

    show_status(name, as_json=as_json, watch=watch)


@click.command()
@click.argument("target", metavar="[APP[/DEPLOYMENT]]", default="")
@click.option("--request", "request_id", metavar="ID", help="Show what was logged for one request.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged, until Ctrl-C.")
@click.option(
    "--since",
    metavar="TIME",
    help="Show what was logged since then: 30s, 10m, 2h or 1d ago, or a date with or without a time.",
)
@click.option(
    "--lines",
    type=click.IntRange(0),
    help="Show so many entries at the end.  [default: 200; all with --request or --since]",
)
@click.option("--access", is_flag=True, help="Show the access logs of the front door as well.")
def logs(
    target: str,
    request_id: str | None,
    follow: bool,
    since: str | None,
    lines: int | None,
    access: bool,
) -> None:
    """Show what the processes of this state folder have logged, in the order of time.

    APP or APP/DEPLOYMENT shows its replicas alone. It need not run any more.
    """
    from remora.cli.logs import show_logs

    show_logs(
        target,
        request_id=request_id,
        since=since,
        lines=lines,
        access=access,
        follow=follow,
    )


@click.command("controller-health")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
def controller_health(as_json: bool) -> None:
    """Show how the controller itself is: its ticks, how late they come, its memory."""
    from remora.cli.controller_health import show_controller_health

    show_controller_health(as_json=as_json)


@click.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def shutdown(yes: bool) -> None:
    """Stop the instance: finish ongoing requests, then end every process of it."""
    from remora.cli.lifecycle import stop_instance

    stop_instance(ask=not yes)
