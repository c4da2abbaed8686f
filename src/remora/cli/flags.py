"""Options that several commands have, and what becomes of them.

Each `…_flags` adds a group of options to a command; the function beside it takes what was said of
them out of all that was said.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remora.cli.errors import UsageError

if TYPE_CHECKING:
    from remora.cli.deploy import DeployOptions
    from remora.config import EngineOptions, gRPCOptions
    from remora.options.resources import MachineOptions

PORT = click.IntRange(0, 65535)

arguments = click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
app_dir_flag = click.option(
    "-d",
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to import MODULE from.  [default: this folder]",
)
name_flag = click.option(
    "-n", "--name", default="default", show_default=True, help="Name of the application."
)
wait_flag = click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Wait until it is in effect, or return when it is accepted.",
)


def grpc_flags(command: Callable[..., None]) -> Callable[..., None]:
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
            "--grpc-port", type=PORT, help="Port for gRPC; 0 takes a free one.  [default: 9000]"
        ),
    ):
        command = option(command)
    return command


def grpc_of(said: dict[str, Any]) -> gRPCOptions:
    """Take the options for gRPC."""
    from remora.config import gRPCOptions

    port = said.pop("grpc_port")
    return gRPCOptions(
        port=gRPCOptions().port if port is None else port,
        grpc_servicer_functions=list(said.pop("grpc_servicer_functions")),
        enable_reflection=said.pop("grpc_enable_reflection"),
    )


def admin_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the REST API to a command."""
    for option in (
        click.option(
            "--admin-port",
            type=PORT,
            help="Its port; 0 takes a free one.  [default: 8265 if it is free]",
        ),
        click.option("--admin-host", help="Where the REST API listens.  [default: 127.0.0.1]"),
    ):
        command = option(command)
    return command


def admin_of(said: dict[str, Any]) -> dict[str, Any]:
    """Take what was said of the REST API; empty: nothing."""
    found = {name: said.pop(f"admin_{name}") for name in ("host", "port")}
    return {name: value for name, value in found.items() if value is not None}


def machine_flags(command: Callable[..., None]) -> Callable[..., None]:
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


def machine_of(said: dict[str, Any]) -> MachineOptions:
    """Take what the machine is said to have."""
    import json

    from remora.options.resources import machine_options

    given: dict[str, Any] = {}
    for name in ("resources", "labels"):
        text = said.pop(name)
        try:
            given[name] = None if text is None else json.loads(text)
        except ValueError as error:
            raise click.BadParameter(
                f"{text!r} is no JSON: {error}", param_hint=f"--{name}"
            ) from None
    for name in ("num_cpus", "num_gpus", "memory"):
        given[name] = said.pop(name)
    return machine_options(**given)


def engine_flags(command: Callable[..., None]) -> Callable[..., None]:
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
            help="Address of a Ray cluster, host:port; auto: the one of this machine; local: a new one.  "
            "[default: $REMORA_ADDRESS]",
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


def engine_of(said: dict[str, Any], location: str | None = None) -> EngineOptions:
    """Take the options for the engine.

    Args:
        said: all that was said; what is not comes from the environment.
        location: of proxies; None: every node.

    Raises:
        UsageError: what cannot be, or not together.
    """
    from remora.config import engine_options
    from remora.errors import ConfigError
    from remora.options.node import NodeOptions

    names = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
    node = NodeOptions(**{name: said.pop(f"node_{name}") for name in names})
    try:
        return engine_options(said.pop("engine"), said.pop("address"), location, node)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def target_flags(command: Callable[..., None]) -> Callable[..., None]:
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
        app_dir_flag,
        arguments,
        click.argument("target", metavar="CONFIG|MODULE:APP"),
    ):
        command = option(command)
    return command


def deploy_options(said: dict[str, Any]) -> DeployOptions:
    """Take what names a config, or one application with its options."""
    from remora.cli.deploy import DeployOptions

    return DeployOptions(**{**said, "app_dir": said["app_dir"].resolve()})
