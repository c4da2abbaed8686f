"""`remora run FILE`: serve what a config file declares until Ctrl-C, or start it and leave it.

The front doors are those of the file; what the command line says of them goes first. What this
command started, it ends: a whole instance when none ran before, the file's applications otherwise.
"""

from __future__ import annotations

import asyncio

import msgspec

from remora.cli.deploy import DeployOptions, follow, read, warn_of_ignored
from remora.cli.errors import UsageError
from remora.cli.instance import begun, grpc_setup
from remora.cli.progress import PlainProgress
from remora.cli.run import RunOptions
from remora.cli.serving import serve_to_the_end
from remora.config import (
    ADMIN,
    LOCAL_ENGINE,
    HTTPOptions,
    ProxyLocation,
    admin_options,
    gRPCOptions,
)
from remora.config_file.declaration import DeployConfig
from remora.engine.launch import LaunchSetup
from remora.instance import Instance
from remora.observe.tracing import require_library
from remora.options.logging import with_absolute_folder
from remora.wire.control import ApplicationStatus, ConfigRequest


def run_config(options: RunOptions) -> int:
    """Serve a config file; returns the exit status.

    Raises:
        ConfigFileError: something in it is wrong; nothing was started.
        CommandError: it cannot be served; whatever was started for it has been ended.
    """
    if options.reload:
        raise UsageError(
            "--reload works with an import path; edit the file and `remora deploy` it."
        )
    config, request = read(
        DeployOptions(options.target, options.arguments, app_dir=options.app_dir)
    )
    if config.tracing is not None and config.tracing.enabled:
        require_library()
    http = _http(config, options)
    given = options.grpc if options.grpc != gRPCOptions() else config.grpc or gRPCOptions()
    grpc = grpc_setup(given, http.host, options.app_dir)
    setup = LaunchSetup(
        http=http,
        grpc=grpc,
        machine=options.machine,
        engine=options.engine if options.engine != LOCAL_ENGINE else config.engine or LOCAL_ENGINE,
        # What the command line says goes first.
        admin=admin_options({**msgspec.structs.asdict(config.admin or ADMIN), **options.admin}),
        logging=with_absolute_folder(config.logging),
        tracing=config.tracing,
    )
    with begun(setup, bound=options.blocking, asked=options.asks_where) as instance:
        warn_of_ignored(config, instance)
        instance.wait_ready()
        return asyncio.run(_serve(instance, request, blocking=options.blocking))


def _http(config: DeployConfig, options: RunOptions) -> HTTPOptions:
    http = config.http or HTTPOptions()
    if config.location is ProxyLocation.Disabled:
        return msgspec.structs.replace(http, host=None)
    said = {"host": options.host, "port": options.port}
    return msgspec.structs.replace(
        http, **{name: value for name, value in said.items() if value is not None}
    )


async def _serve(instance: Instance, request: ConfigRequest, *, blocking: bool) -> int:
    names = [app.name for app in request.applications]

    async def deploy() -> dict[str, ApplicationStatus]:
        status = await follow(instance, await instance.submit(request), names)
        return status.applications

    return await serve_to_the_end(instance, names, deploy(), PlainProgress(), blocking=blocking)
