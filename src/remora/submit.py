"""From a checked config to what the controller takes: says where each application is imported from.

Rules: looks at folders and imports nothing of the user's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from remora.declaration import ApplicationConfig, DeployConfig
from remora.errors import ConfigFileError
from remora.wire.control import ConfigRequest, DeclaredApplication, Surroundings


def config_request(
    config: DeployConfig, source: str, *, place: Surroundings, base: Path | None
) -> ConfigRequest:
    """Describe a config to the controller.

    Args:
        config: checked.
        source: who or what it comes from, for people.
        place: where applications without a `working_dir` are imported from.
        base: what a relative `working_dir` is relative to; None: there is no such folder.

    Raises:
        ConfigFileError: a `working_dir` is no folder of this machine.
    """
    problems: list[str] = []
    made = tuple(
        DeclaredApplication(
            name=app.name,
            route_prefix=app.route_prefix,
            given=msgspec.json.encode(app.given),
            surroundings=_surroundings(app, f"applications[{index}]", place, base, problems),
            env=dict(app.runtime_env.get("env_vars") or {}),
        )
        for index, app in enumerate(config.applications)
    )
    if problems:
        raise ConfigFileError(problems)
    return ConfigRequest(
        applications=made,
        source=source,
        target_capacity=config.target_capacity,
    )


def _surroundings(
    app: ApplicationConfig, where: str, place: Surroundings, base: Path | None, problems: list[str]
) -> Surroundings:
    given = app.runtime_env.get("working_dir")
    if given is None:
        return place
    folder = Path(given).expanduser()
    if base is not None:
        folder = base / folder
    where = f"{where}.runtime_env.working_dir"
    if not folder.is_absolute():
        problems.append(f"{where}: {given!r} must be an absolute path: there is no file beside it")
    elif not folder.is_dir():
        problems.append(f"{where}: {folder} is no folder of this machine")
    path = str(folder.absolute())
    return Surroundings(sys_path=(path,), cwd=path)


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
