"""`runtime_env`: what the process of a replica finds beside the instance's packages and folders.

Rules: what a user writes is read and checked here, and no file is looked at. What folders and files
hold is found out when an application is built (`build/pinning.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from remora.errors import ConfigError, NotSupportedYetError
from remora.options.checks import check_keys
from remora.options.resources import RuntimeEnv, texts_by_name

_KEYS = ("env_vars", "excludes", "pip", "py_modules", "uv", "working_dir")
#: What Ray knows besides, and what to do here.
_ELSEWHERE = {
    "conda": "use pip or uv",
    "container": "run the whole instance in a container",
    "image_uri": "run the whole instance in a container",
    "config": "environments are built when they are needed, however long it takes",
    "worker_process_setup_hook": "do it in the constructor",
    "java_jars": "leave it out",
    "nsight": "leave it out",
}
_INSTALLERS: dict[str, tuple[str, ...]] = {
    "pip": ("packages", "pip_check", "pip_install_options", "pip_version"),
    "uv": ("packages", "uv_check", "uv_pip_install_options", "uv_version"),
}


def read_runtime_env(field: str, given: Any) -> dict[str, Any]:
    """Turn a `runtime_env` dict into the fields `env_vars` and `runtime_env`. Pure.

    Raises:
        ConfigError: a key or a value that cannot be right.
        NotSupportedYetError: a key that Ray knows and nothing here acts on.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(field, given, "must be a dict")
    for key, value in given.items():
        if key in _ELSEWHERE:
            raise NotSupportedYetError(f"{field}[{key!r}]", value, _ELSEWHERE[key])
    check_keys(field, given, _KEYS)
    if given.get("pip") is not None and given.get("uv") is not None:
        raise ConfigError(f"{field}['uv']", given["uv"], "pip and uv exclude each other")
    found = RuntimeEnv(
        working_dir=_path(f"{field}['working_dir']", given.get("working_dir") or ""),
        py_modules=tuple(
            _path(f"{field}['py_modules'][{index}]", each)
            for index, each in enumerate(_list(f"{field}['py_modules']", given.get("py_modules")))
        ),
        excludes=tuple(_texts(f"{field}['excludes']", given.get("excludes"))),
        **_packages(field, given),
    )
    env_vars = texts_by_name(f"{field}['env_vars']", given.get("env_vars"))
    return {"env_vars": env_vars, "runtime_env": found}


def _list(field: str, given: Any) -> list[Any]:
    if given is None:
        return []
    if not isinstance(given, (list, tuple)):
        raise ConfigError(field, given, "must be a list")
    return list(given)


def _texts(field: str, given: Any) -> list[str]:
    found = _list(field, given)
    if not all(isinstance(each, str) and each.strip() for each in found):
        raise ConfigError(field, given, "must be a list of texts that are not empty")
    return found


def _path(field: str, given: Any) -> str:
    if isinstance(given, ModuleType) and given.__file__:
        file = Path(given.__file__)
        return str(file.parent if file.name == "__init__.py" else file)
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    if not isinstance(given, str):
        raise ConfigError(field, given, "must be the path of a folder or file")
    if given.startswith("local://"):
        return given.removeprefix("local://")
    if "://" in given:
        raise NotSupportedYetError(field, given, "use a folder or a zip file of this machine")
    return given


def _packages(field: str, given: dict[str, Any]) -> dict[str, Any]:
    installer = "uv" if given.get("uv") is not None else "pip"
    wanted = given.get(installer)
    if wanted is None:
        return {}
    field = f"{field}[{installer!r}]"
    options: list[str] = []
    if isinstance(wanted, dict):
        check_keys(field, wanted, _INSTALLERS[installer])
        for key in (f"{installer}_check", f"{installer}_version"):
            if wanted.get(key):
                advice = f"name the version of {installer} among the instance's own packages"
                raise NotSupportedYetError(f"{field}[{key!r}]", wanted[key], advice)
        name = "pip_install_options" if installer == "pip" else "uv_pip_install_options"
        options = _texts(f"{field}[{name!r}]", wanted.get(name))
        wanted = wanted.get("packages")
    if isinstance(wanted, str):
        if not wanted:
            raise ConfigError(field, wanted, "must be a list, or the path of a requirements file")
        return {
            "requirements_file": wanted,
            "installer": installer,
            "install_options": tuple(options),
        }
    packages = _texts(field, wanted)
    if not packages:
        raise ConfigError(field, wanted, "must name packages")
    return {
        "packages": tuple(packages),
        "installer": installer,
        "install_options": tuple(options),
    }


def excludes_of(env: RuntimeEnv) -> tuple[tuple[str, ...], ...]:
    """Say what is left out of each folder of a pinned environment. Pure."""
    # One that an older version saved has the same for all.
    return env.excluded or (env.excludes,) * len(env.digests)
