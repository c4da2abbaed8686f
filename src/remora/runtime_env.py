"""`runtime_env`: what the process of a replica finds beside the instance's packages and folders.

Rules: reads what a user wrote; building it is the engine's.
"""

from __future__ import annotations

from typing import Any

from remora.errors import ConfigError, NotSupportedYetError
from remora.resource_config import texts_by_name


def read_runtime_env(field: str, given: Any) -> dict[str, Any]:
    """Turn a `runtime_env` dict into fields of `DeploymentConfig`. Pure.

    Raises:
        ConfigError: a key or a value that cannot be right.
        NotSupportedYetError: a key that only another engine knows.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(field, given, "must be a dict")
    for key, value in given.items():
        if key != "env_vars":
            raise NotSupportedYetError(
                f"{field}[{key!r}]", value, "only env_vars works; install packages beforehand"
            )
    return {"env_vars": texts_by_name(f"{field}['env_vars']", given.get("env_vars"))}
