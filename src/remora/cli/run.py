"""`remora run`: serve one application until Ctrl-C, or start it and leave it running.

Theory of operation: the supervisor is started first and comes up while this process imports the
user's module. What this command started, it ends: a whole instance when none ran before, its
application alone otherwise.

Rules: this module imports only what starting the supervisor needs; the rest comes after that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remora.cli.errors import UsageError
from remora.cli.instance import begun, grpc_setup, http_options
from remora.config import LOCAL_ENGINE, EngineOptions, admin_options, gRPCOptions
from remora.engine.launch import LaunchSetup
from remora.options.resources import MachineOptions


@dataclass(frozen=True)
class RunOptions:
    """What the command line of `remora run` says; None: left open there."""

    target: str
    arguments: tuple[str, ...]
    host: str | None
    port: int | None
    app_dir: Path
    name: str
    route_prefix: str
    reload: bool
    blocking: bool
    grpc: gRPCOptions
    machine: MachineOptions
    engine: EngineOptions = LOCAL_ENGINE
    #: Of `admin_options`, what was said.
    admin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asks_where(self) -> bool:
        """Whether they say where HTTP is to listen."""
        return self.host is not None or self.port is not None


def _check_route_prefix(route_prefix: str) -> None:
    if route_prefix == "/":
        # By far the most frequent: no import for it.
        return
    from remora.build.graph import check_route_prefix
    from remora.errors import ConfigError

    try:
        check_route_prefix(route_prefix)
    except ConfigError as error:
        raise UsageError(error.message) from None


def run_application(options: RunOptions) -> None:
    """Serve the application that `options` describe, and end the process when that is over.

    Raises:
        CommandError: it cannot be served; whatever was started for it has been ended.
    """
    if options.target.endswith((".yaml", ".yml", ".json")):
        from remora.cli.run_config import run_config

        sys.exit(run_config(options))
    from remora.cli.target import parse_arguments, parse_target

    if options.reload and not options.blocking:
        raise UsageError(
            "--reload stays and watches, --non-blocking returns: leave one of them out."
        )
    _check_route_prefix(options.route_prefix)
    target = parse_target(options.target)
    arguments = parse_arguments(options.arguments)
    if options.reload:
        from remora.cli.reload import keep_no_bytecode

        keep_no_bytecode()
    grpc = grpc_setup(options.grpc, options.host, options.app_dir)
    setup = LaunchSetup(
        http_options(options.host, options.port),
        grpc,
        options.machine,
        options.engine,
        admin_options(dict(options.admin)),
    )
    with begun(setup, bound=options.blocking, asked=options.asks_where) as instance:
        from remora.cli.serving import serve

        status = serve(options, target, arguments, instance)
    sys.exit(status)
