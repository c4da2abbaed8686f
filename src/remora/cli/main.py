"""The command `remora`: declares the commands and their options.

Rules: no work in here. A command imports what it needs when it is called, so that `remora version`
does not pay for `remora status`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from remora import __version__
from remora.cli.errors import FAILED_STATUS, INTERRUPTED_STATUS, CommandError
from remora.errors import RemoraError

if TYPE_CHECKING:
    from remora.cli.deploy import DeployOptions
    from remora.config import EngineOptions, gRPCOptions
    from remora.options.resources import MachineOptions

if not {"-h", "--help"}.isdisjoint(sys.argv) or len(sys.argv) == 1:
    # Only help looks better for it, and it costs 20 ms in which nothing else happens.
    import rich_click.patch

    rich_click.patch.patch()

_PORT = click.IntRange(0, 65535)


_app_dir = click.option(
    "-d",
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to import MODULE from.  [default: this folder]",
)


def _grpc_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for gRPC to a command."""
    for option in (
        click.option(
            "--grpc-enable-reflection/--grpc-disable-reflection",
            default=True,
            show_default=True,
            help="Tell gRPC clients which services there are.",
        ),
        click.option(
            "--grpc-servicer-functions",
            multiple=True,
            metavar="MODULE.FUNCTION",
            help="Serve gRPC: import path of a generated add_…Servicer_to_server; may be repeated.",
        ),
        click.option(
            "--grpc-port", type=_PORT, help="Port for gRPC; 0 takes a free one.  [default: 9000]"
        ),
    ):
        command = option(command)
    return command


def _grpc_options(port: int | None, functions: tuple[str, ...], reflection: bool) -> gRPCOptions:
    from remora.config import gRPCOptions

    defaults = gRPCOptions()
    return gRPCOptions(
        port=defaults.port if port is None else port,
        grpc_servicer_functions=list(functions),
        enable_reflection=reflection,
    )


def _machine_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what the machine has to a command."""
    for option in (
        click.option("--labels", metavar="JSON", help="Labels of this machine, for selectors."),
        click.option("--resources", metavar="JSON", help="Custom resources: '{\"tokenizer\": 4}'."),
        click.option("--memory", type=float, help="Bytes for replicas.  [default: all]"),
        click.option("--num-gpus", type=int, help="GPUs for replicas.  [default: those found]"),
        click.option("--num-cpus", type=float, help="Cores for replicas.  [default: all]"),
    ):
        command = option(command)
    return command


def _engine_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the engine to a command."""
    for option in (
        *(
            click.option(f"--node-ssl-{name}", metavar="FILE", help=f"TLS between nodes: {what}.")
            for name, what in (
                ("ca-certs", "PEM file of the authorities of all nodes"),
                ("keyfile", "PEM file of its key"),
                ("certfile", "PEM file of the certificate, on each node its own"),
            )
        ),
        click.option(
            "--address",
            envvar="REMORA_ADDRESS",
            help="Address of a Ray cluster; auto: the one of this machine; local: a new one.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            help="What runs the processes: this machine alone, or a Ray cluster.  [default: ray "
            "with an address, else local]",
        ),
    ):
        command = option(command)
    return command


def _machine(
    num_cpus: float | None,
    num_gpus: int | None,
    memory: float | None,
    resources: str | None,
    labels: str | None,
) -> MachineOptions:
    import json

    from remora.options.resources import machine_options

    given: dict[str, object] = {}
    for name, text in (("resources", resources), ("labels", labels)):
        try:
            given[name] = None if text is None else json.loads(text)
        except ValueError as error:
            raise click.BadParameter(
                f"{text!r} is no JSON: {error}", param_hint=f"--{name}"
            ) from None
    return machine_options(num_cpus, num_gpus, memory, given["resources"], given["labels"])


def _engine_options(
    engine: str | None,
    address: str | None,
    node_ssl_certfile: str | None,
    node_ssl_keyfile: str | None,
    node_ssl_ca_certs: str | None,
    location: str | None = None,
) -> EngineOptions:
    from remora.config import engine_options
    from remora.options.node import NodeOptions

    node = NodeOptions(
        ssl_certfile=node_ssl_certfile,
        ssl_keyfile=node_ssl_keyfile,
        ssl_ca_certs=node_ssl_ca_certs,
    )
    # The variable is for those who leave the choice open.
    return engine_options(engine, None if engine == "local" else address, location, node)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="One instance lives in one state folder: the environment variable REMORA_HOME, or ~/.remora.",
)
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Serve models, on this machine, without losing a request."""


@cli.command()
@click.argument("target", metavar="CONFIG|MODULE:APP")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=_PORT, help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option(
    "-d",
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to import MODULE from.  [default: this folder]",
)
@click.option("-n", "--name", default="default", show_default=True, help="Name of the application.")
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
@_engine_flags
@_grpc_flags
@_machine_flags
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
    engine: str | None,
    address: str | None,
    node_ssl_certfile: str | None,
    node_ssl_keyfile: str | None,
    node_ssl_ca_certs: str | None,
    grpc_port: int | None,
    grpc_servicer_functions: tuple[str, ...],
    grpc_enable_reflection: bool,
    **machine: Any,
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
            grpc=_grpc_options(grpc_port, grpc_servicer_functions, grpc_enable_reflection),
            machine=_machine(**machine),
            engine=_engine_options(
                engine, address, node_ssl_certfile, node_ssl_keyfile, node_ssl_ca_certs
            ),
        )
    )


@cli.command()
@click.option("--http-host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--http-port", type=_PORT, help="Port; 0 takes a free one.  [default: 8000]")
@click.option(
    "--proxy-location",
    type=click.Choice(["EveryNode", "HeadOnly", "Disabled"]),
    default="EveryNode",
    show_default=True,
    help="On which nodes of a cluster proxies run.",
)
@click.option("--admin-host", help="Where the REST API listens.  [default: 127.0.0.1]")
@click.option(
    "--admin-port", type=_PORT, help="Its port; 0 takes a free one.  [default: 8265 if it is free]"
)
@_engine_flags
@_grpc_flags
@_machine_flags
def start(
    http_host: str | None,
    http_port: int | None,
    proxy_location: str,
    admin_host: str | None,
    admin_port: int | None,
    engine: str | None,
    address: str | None,
    node_ssl_certfile: str | None,
    node_ssl_keyfile: str | None,
    node_ssl_ca_certs: str | None,
    grpc_port: int | None,
    grpc_servicer_functions: tuple[str, ...],
    grpc_enable_reflection: bool,
    **machine: Any,
) -> None:
    """Start an empty instance in the background, and return when it is up."""
    from remora.cli.lifecycle import start_instance
    from remora.config import admin_options

    grpc = _grpc_options(grpc_port, grpc_servicer_functions, grpc_enable_reflection)
    chosen = _engine_options(
        engine, address, node_ssl_certfile, node_ssl_keyfile, node_ssl_ca_certs, proxy_location
    )
    said = {"host": admin_host, "port": admin_port}
    admin = admin_options({name: value for name, value in said.items() if value is not None})
    start_instance(http_host, http_port, grpc, _machine(**machine), chosen, admin)


@cli.command()
@click.option("-n", "--name", help="Show this application only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or one per change.")
@click.option("-w", "--watch", is_flag=True, help="Keep showing changes until Ctrl-C.")
def status(name: str | None, as_json: bool, watch: bool) -> None:
    """Show what runs: processes, applications, deployments, replicas."""
    from remora.cli.status import show_status

    show_status(name, as_json=as_json, watch=watch)


@cli.command()
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


@cli.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def shutdown(yes: bool) -> None:
    """Stop the instance: finish ongoing requests, then end every process of it."""
    from remora.cli.lifecycle import stop_instance

    stop_instance(ask=not yes)


@cli.command()
@click.argument("target", metavar="MODULE:APP")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-d",
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to import MODULE from.  [default: this folder]",
)
@click.option("-n", "--name", default="default", show_default=True, help="Name of the application.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, or a folder for a file <module>_handles.py.  [default: standard output]",
)
def stubs(
    target: str, arguments: tuple[str, ...], app_dir: Path, name: str, output: Path | None
) -> None:
    """Write a module with typed handles of an application, for type checkers and editors."""
    from remora.cli.stubs import write_stubs

    write_stubs(target, arguments, app_dir.resolve(), name, output)


def _target_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add what names a config, or one application with its options, to a command."""
    for option in (
        click.option(
            "--working-dir", metavar="DIR", help="Its folder; the working_dir of runtime_env."
        ),
        click.option("--runtime-env-json", metavar="JSON", help="Its runtime_env."),
        click.option(
            "--runtime-env", metavar="FILE", help="YAML or JSON file with its runtime_env."
        ),
        click.option(
            "--route-prefix",
            default="/",
            show_default=True,
            help="Its path, without a config file.",
        ),
        click.option("-n", "--name", help="Name of the application, without a config file."),
        _app_dir,
        click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]..."),
        click.argument("target", metavar="CONFIG|MODULE:APP"),
    ):
        command = option(command)
    return command


def _deploy_options(app_dir: Path, **said: Any) -> DeployOptions:
    from remora.cli.deploy import DeployOptions

    return DeployOptions(app_dir=app_dir.resolve(), **said)


@cli.command()
@_target_flags
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Wait until it is in effect, or return when it is accepted.",
)
def deploy(wait: bool, **said: Any) -> None:
    """Deploy what a config file declares, or one application, to the instance that runs.

    What an earlier config declared and this one does not is deleted.
    """
    from remora.cli.deploy import deploy as work

    work(_deploy_options(**said), wait=wait)


@cli.command()
@_target_flags
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(as_json: bool, **said: Any) -> None:
    """Print what `remora deploy` would change, and change nothing."""
    from remora.cli.plan import show_plan

    show_plan(_deploy_options(**said), as_json=as_json)


@cli.command()
@click.argument("targets", metavar="MODULE:APP...", nargs=-1, required=True)
@_app_dir
@click.option(
    "-o",
    "--output-path",
    type=click.Path(path_type=Path),
    help="File to write.  [default: standard output]",
)
@_grpc_flags
def build(
    targets: tuple[str, ...],
    app_dir: Path,
    output_path: Path | None,
    grpc_port: int | None,
    grpc_servicer_functions: tuple[str, ...],
    grpc_enable_reflection: bool,
) -> None:
    """Write the config file of applications, with the options that their code sets."""
    from remora.cli.build import write_config

    grpc = _grpc_options(grpc_port, grpc_servicer_functions, grpc_enable_reflection)
    write_config(targets, app_dir.resolve(), output_path, grpc)


@cli.command()
@click.option("-n", "--name", help="Show that of this application only.")
def config(name: str | None) -> None:
    """Print what was declared last, as it was written."""
    from remora.cli.deploy import show_config

    show_config(name)


@cli.command()
@click.argument("name")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is gone.")
def delete(name: str, wait: bool) -> None:
    """Delete an application: ongoing requests finish first."""
    from remora.cli.deploy import delete as work

    work(name, wait=wait)


@cli.command()
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object for each release.")
def history(limit: int, as_json: bool) -> None:
    """Show what was deployed when and what became of it, the latest first."""
    from remora.cli.history import show_history

    show_history(limit, as_json=as_json)


@cli.command()
@click.argument("before", required=False)
@click.argument("after", required=False)
def diff(before: str | None, after: str | None) -> None:
    """Show what differs between two releases, or a release and a config file.

    BEFORE is the config before AFTER unless it is named, and AFTER the one that is declared now. A
    config file on its own is compared with what is declared now: `+` is what a deploy of it adds.
    """
    from remora.cli.history import show_diff

    show_diff(before, after)


@cli.command()
@click.argument("release", type=click.IntRange(1), required=False)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Wait until it is in effect, or return when it is accepted.",
)
def rollback(release: int | None, wait: bool) -> None:
    """Go back to what RELEASE deployed.

    Without a number: to the last config before the present one that was in effect and says something else.
    """
    from remora.cli.history import roll_back

    roll_back(release or 0, wait=wait)


@cli.command()
@click.argument("target", metavar="[APP[/DEPLOYMENT]]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of deployments.")
def explain(target: str | None, as_json: bool) -> None:
    """Say how many replicas there should be, and how the number came about."""
    from remora.cli.explain import explain as show

    show(target, as_json=as_json)


@cli.command("controller-health")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
def controller_health(as_json: bool) -> None:
    """Show how the controller itself is: its ticks, how late they come, its memory."""
    from remora.cli.controller_health import show_controller_health

    show_controller_health(as_json=as_json)


@cli.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-d",
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to import MODULE from.  [default: this folder]",
)
@click.option(
    "--load",
    "loads",
    multiple=True,
    metavar="[DEPLOYMENT=]LOAD",
    help="SECONDS@RATE,... or SECONDS@RATE-RATE; a CSV file with a time (and how long it took) in each line; or a proxy's access log. May be repeated.",
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="[DEPLOYMENT=]SECONDS",
    help="How long a request takes, where the load does not say.  [default: 0.1]",
)
@click.option(
    "--variation",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Standard deviation of that, by its mean.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1),
    help="Requests that a replica works on at the same time.  [default: all that it takes]",
)
@click.option(
    "--start",
    "start_s",
    type=click.FloatRange(0),
    default=0.5,
    show_default=True,
    help="Seconds until a new replica serves.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A field of autoscaling_config; may be repeated.",
)
@click.option("--for", "length_s", type=click.FloatRange(1), help="Seconds.  [default: the load's]")
@click.option("--seed", type=int, default=0, show_default=True, help="The same one, the same load.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a picture to this file, as SVG.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures only, as JSON.")
def simulate(**said: Any) -> None:
    """Show what autoscaling would do under a load: replicas, queue and latency.

    MODULE:APP names the application whose options are tried; without it, --set describes one deployment.
    """
    from remora.cli.simulate import SimulationOptions, simulate_load

    simulate_load(SimulationOptions(**said))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    from remora.cli.deploy import print_schema

    print_schema()


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    sys.exit(status)


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # The package has set it, for the time of the imports above.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # Without standalone mode, `--help` comes back as the status 0 rather than as an exit.
        sys.exit(cli.main(prog_name="remora", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CommandError as error:
        if error.user_traceback:
            click.echo(error.user_traceback, err=True)
        _fail(error.message, error.status)
    except RemoraError as error:
        _fail(error.message, FAILED_STATUS)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED_STATUS)
