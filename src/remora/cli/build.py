"""`remora build`: the config file of applications that are written in code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from remora import __version__
from remora.build.graph import walk
from remora.cli.deploy import to_yaml
from remora.cli.errors import CommandError
from remora.cli.target import Target, load, parse_target
from remora.config import HTTPOptions, gRPCOptions
from remora.config_file import declaration
from remora.config_file.declaration import DEPLOYMENT_KEYS
from remora.deployment import Application, Deployment


def write_config(
    targets: Sequence[str], app_dir: Path, output: Path | None, grpc: gRPCOptions
) -> None:
    """Write a config with one application for each import path.

    Raises:
        CommandError: one of them leads to no application, or the file cannot be written.
    """
    single = len(targets) == 1
    applications = []
    for number, text in enumerate(targets, 1):
        target = parse_target(text)
        name = f"app{number}"
        # Whatever it prints must not get into the file.
        with _stdout_to_stderr():
            application = load(target, {}, app_dir)
        applications.append(describe(application, target, name, "/" if single else f"/{name}"))
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": HTTPOptions().host, "port": HTTPOptions().port},
        "grpc_options": {
            "port": grpc.port,
            "grpc_servicer_functions": list(grpc.grpc_servicer_functions),
            "enable_reflection": grpc.enable_reflection,
        },
        "applications": applications,
    }
    declaration.parse(config)
    text = (
        f"# Made by `remora build` of Remora {__version__}. `remora schema` describes every key.\n\n"
        f"{to_yaml(config)}"
    )
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}.") from None


class _stdout_to_stderr:  # noqa: N801 - used like a function
    """While it lasts, what is printed goes to where it does no harm."""

    def __enter__(self) -> None:
        self._before = sys.stdout
        sys.stdout = sys.stderr

    def __exit__(self, *_: object) -> None:
        sys.stdout = self._before


def describe(
    application: Application, target: Target, name: str, route_prefix: str
) -> dict[str, Any]:
    """Write one application as a config has it, with the options that its code sets."""
    deployments = []
    for node, node_name, _, _ in walk(application, name):
        deployment = node._deployment
        deployments.append({"name": node_name, **options_of(deployment)})
    return {
        "name": name,
        "route_prefix": route_prefix,
        "import_path": str(target),
        "runtime_env": {},
        "deployments": deployments,
    }


def options_of(deployment: Deployment[Any]) -> dict[str, Any]:
    """Return the options that the code sets, as a file can have them."""
    given: dict[str, Any] = dict(deployment._options)
    made = {}
    for key in DEPLOYMENT_KEYS:
        if key != "name" and given.get(key) is not None:
            made[key] = _plain(given[key], f"{key} of deployment {deployment.name!r}")
    return made


def _plain(value: Any, where: str) -> Any:
    """Write a value as YAML can have it; a class or function by its import path.

    Raises:
        CommandError: it has none.
    """

    def named(found: Any) -> str:
        path = f"{found.__module__}:{found.__qualname__}"
        if "<" in path or found.__module__ == "__main__":
            raise CommandError(f"{where} is {path}, which no file can name: move it into a module.")
        return path

    if isinstance(value, type) or callable(value):
        return named(value)
    try:
        return msgspec.to_builtins(value, enc_hook=named)
    except (TypeError, AttributeError):
        raise CommandError(f"{where} is {value!r}, which no file can hold.") from None
