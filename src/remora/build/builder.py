"""A process that imports one application for the controller, describes it and ends.

Rules: knows one control method, `build`. Whatever the user's code does, the answer says it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import signal
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remora.build.graph import build, preloadable
from remora.build.import_path import Target, load
from remora.config import nearest
from remora.config_file.declaration import ApplicationConfig, parse_application
from remora.deployment import Deployment
from remora.engine.base import ProcessContext
from remora.errors import AppLoadError, ConfigFileError, RemoraError
from remora.observe.logs import log_of_system_process
from remora.observe.tracebacks import user_traceback
from remora.options.logging import logging_config, with_absolute_folder
from remora.replica.surroundings import OwnProcess
from remora.transport.control import serve_control
from remora.wire.codec import pack, to_ordered_json, unpack
from remora.wire.control import (
    ApplicationSpec,
    BuildRequest,
    BuildResult,
    DeclaredApplication,
    Surroundings,
)


def main(context: ProcessContext) -> None:
    """Entry point of a builder's process."""
    # An import may end the process, and then what it said last is what there is to tell.
    log_of_system_process(context, "builder", "builder", direct=True)
    asyncio.run(_serve(context))


async def _serve(context: ProcessContext) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    handlers = {"build": functools.partial(_build, context)}
    servers = [await serve_control(context.sockets["wire"], handlers)]
    if (for_others := context.sockets.get("wire_tcp")) is not None:
        servers.append(await serve_control(for_others, handlers, context.token))
    await ended.wait()
    for server in servers:
        server.close()


async def _build(context: ProcessContext, body: bytes) -> bytes:
    # On the loop, on purpose: modules expect to be imported in the main thread.
    declared = unpack(body, BuildRequest).application
    try:
        OwnProcess(context.sys_path, context.cwd).settle(declared.surroundings)
        return pack(BuildResult(application=describe(declared)))
    except AppLoadError as error:
        problem = "\n".join(filter(None, (str(error), error.user_traceback)))
    except RemoraError as error:
        problem = str(error)
    except OSError as error:
        problem = f"The folder of the application cannot be used: {error}"
    except Exception as error:  # noqa: BLE001 - border: bound arguments of the user's are pickled
        problem = user_traceback(error).rstrip()
    if context.cwd:
        # A copy of the user's folder, which the user knows nothing of.
        problem = problem.replace(context.cwd, declared.runtime_env.working_dir)
    return pack(BuildResult(error=problem))


def describe(declared: DeclaredApplication) -> ApplicationSpec:
    """Import an application and say what it consists of.

    Raises:
        AppLoadError: the import path leads to none.
        RemoraError: it cannot be deployed with the options of the config.
    """
    config = parse_application(json.loads(declared.given), declared.places)
    place = declared.surroundings
    # Where this process happens to be is no place that its replicas know of.
    own = os.getcwd() if declared.runtime_env.working_dir else ""  # noqa: PTH109 - as it was given
    folder = Path(place.cwd or own) if place.cwd or own else None
    target = Target.of(config.import_path)
    application = load(target, config.args, folder)
    overrides = _Overrides(config)
    made = build(
        application,
        config.name,
        config.route_prefix,
        code_version=version_of(config),
        surroundings=Surroundings(sys_path=place.sys_path, cwd=place.cwd, preload=preloadable()),
        external_scaler=config.external_scaler,
        autoscaling_policy=config.autoscaling_policy,
        environment=declared.runtime_env,
        logging_config=with_absolute_folder(logging_config(config.logging_config)),
        change=overrides.change,
    )
    overrides.require_all_used([each.name for each in made.deployments])
    return made


class _Overrides:
    """What a config says of the options of deployments."""

    def __init__(self, config: ApplicationConfig) -> None:
        self._config = config
        self._by_name = {one["name"]: one for one in config.deployments}
        self._env_vars: Mapping[str, str] = config.runtime_env.get("env_vars") or {}

    def change(self, name: str, deployment: Deployment[Any]) -> Deployment[Any]:
        """The deployment with the options of the config.

        Raises:
            AppLoadError: they do not fit it.
        """
        given = self._by_name.get(name, {})
        options = {key: value for key, value in given.items() if key != "name"}
        if self._env_vars:
            actor = options.get("ray_actor_options") or deployment.ray_actor_options
            own = actor.get("runtime_env") or {}
            env_vars = {**self._env_vars, **(own.get("env_vars") or {})}
            options["ray_actor_options"] = {**actor, "runtime_env": {**own, "env_vars": env_vars}}
        if not options:
            return deployment
        try:
            return deployment.options(**options)
        except (TypeError, ValueError) as error:
            raise AppLoadError(
                f"{self._place(name)}The options of the config do not fit deployment {name!r}: "
                f"{error}"
            ) from None

    def require_all_used(self, names: list[str]) -> None:
        """Refuse options of deployments that the application does not have.

        Raises:
            ConfigFileError: names all of them.
        """
        path, has = self._config.import_path, ", ".join(names)
        problems = [
            f"{self._place(name)}{path} has no deployment {name!r}.{nearest(name, names)} It has "
            f"{has}."
            for name in self._by_name
            if name not in names
        ]
        if problems:
            raise ConfigFileError(problems)

    def _place(self, name: str) -> str:
        place = self._config.places.get(name, f"deployments of {self._config.name!r}")
        return f"{place}: "


def version_of(config: ApplicationConfig) -> str:
    """Return a version that stays while replicas made anew would be the same as those that run.

    It is that of what the config says of the code, and of the content of the user's modules that
    were imported for it: so the same config again changes nothing, and edited code is new code.
    """
    said = [config.import_path, config.args, config.runtime_env]
    found = hashlib.sha256(to_ordered_json(said))
    for name, file in sorted(users_modules().items()):
        found.update(f"\0{name}\0".encode())
        try:
            found.update(file.read_bytes())
        except OSError:
            continue  # removed since it was imported: what there is of it is in its name
    return found.hexdigest()[:32]


def users_modules() -> dict[str, Path]:
    """Return the imported modules that are neither Python's, nor installed, nor ours."""
    ours = Path(__file__).parents[1]
    places = {*sysconfig.get_paths().values(), str(ours)}
    installed = tuple(os.path.realpath(place) for place in places)
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and not os.path.realpath(file).startswith(installed):
            found[name] = Path(file)
    return found
