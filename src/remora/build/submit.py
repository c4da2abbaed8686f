"""From a checked config to what the controller takes: says where each application is imported from.

What a `runtime_env` names is pinned here: what folders hold now is what is imported and served,
also after an edit, and again after a rollback.

Rules: reads folders and imports nothing of the user's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from remora.build.pinning import pinned
from remora.config_file.declaration import ApplicationConfig, DeployConfig
from remora.config_file.options import located
from remora.config_file.problem import Path as Steps
from remora.errors import ConfigError, ConfigFileError
from remora.options.resources import RuntimeEnv
from remora.options.runtime_env import read_runtime_env
from remora.wire.control import ConfigRequest, DeclaredApplication, Surroundings


def config_request(
    config: DeployConfig, source: str, *, place: Surroundings, base: Path | None
) -> ConfigRequest:
    """Describe a config to the controller.

    Args:
        config: checked.
        source: who or what it comes from, for people.
        place: where applications without a `working_dir` are imported from.
        base: what relative paths are relative to; None: there is no such folder.

    Raises:
        ConfigFileError: a folder or file that a `runtime_env` names cannot be used.
    """
    problems: list[str] = []
    made = [
        _declared(app, ("applications", index, "runtime_env"), place, base, problems)
        for index, app in enumerate(config.applications)
    ]
    if problems:
        raise ConfigFileError(problems)
    return ConfigRequest(
        applications=tuple(made), source=source, target_capacity=config.target_capacity
    )


def _declared(
    app: ApplicationConfig,
    where: Steps,
    place: Surroundings,
    base: Path | None,
    problems: list[str],
) -> DeclaredApplication:
    env = RuntimeEnv()
    try:
        wanted = _with_base(app.runtime_env, base)
        env = pinned(read_runtime_env("runtime_env", wanted).get("runtime_env", env))
    except ConfigError as error:
        problems.append(str(located(error, where, "runtime_env")))
    return DeclaredApplication(
        name=app.name,
        route_prefix=app.route_prefix,
        given=msgspec.json.encode(app.given),
        # What an application has of its own stands for itself: nothing else may differ.
        surroundings=Surroundings() if env.working_dir else place,
        env=dict(app.runtime_env.get("env_vars") or {}),
        runtime_env=env,
        places=app.places,
    )


def _with_base(given: dict[str, Any], base: Path | None) -> dict[str, Any]:
    """Let paths be relative to the folder of the file that they stand in.

    Raises:
        ConfigError: there is no such file, so they must be absolute.
    """

    def absolute(key: str, path: Any) -> Any:
        if not isinstance(path, str):
            return path
        try:
            found = Path(path).expanduser()
        except RuntimeError as error:  # `~somebody`, whom this machine does not know
            raise ConfigError(f"runtime_env.{key}", path, str(error)) from None
        if base is None and not found.is_absolute():
            raise ConfigError(
                f"runtime_env.{key}", path, "must be an absolute path: there is no file beside it"
            )
        return str(found if base is None else base / found)

    made = dict(given)
    for key in ("working_dir", "pip", "uv"):
        # Of the installers text names a file; packages are a list.
        if isinstance(given.get(key), str):
            made[key] = absolute(key, given[key])
    if isinstance(given.get("py_modules"), list):
        made["py_modules"] = [
            absolute(f"py_modules[{index}]", each) for index, each in enumerate(given["py_modules"])
        ]
    return made


def one_application(
    name: str,
    route_prefix: str | None,
    import_path: str,
    args: dict[str, Any],
    runtime_env: dict[str, Any],
) -> dict[str, Any]:
    """Write the config of a single application, as a file would have it. Pure."""
    given: dict[str, Any] = {"name": name, "route_prefix": route_prefix, "import_path": import_path}
    if args:
        given["args"] = args
    if runtime_env:
        given["runtime_env"] = runtime_env
    return {"applications": [given]}
