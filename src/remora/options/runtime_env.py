"""`runtime_env`: what the process of a replica finds beside the instance's packages and folders.

What a user writes is read where it is written (`read_runtime_env`, which looks at no file), and
pinned when the application is built (`pinned`): paths become absolute, and what folders and files
hold is known by a digest. An engine builds from that, and builds equal content once.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

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
#: Never part of what a folder holds.
ALWAYS_EXCLUDED = (".git", "__pycache__", "*.pyc", ".venv")
#: Of one folder, unpacked. Data that is larger belongs where replicas read it from.
MAX_FOLDER_BYTES = 512 * 1024 * 1024


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
            _path(f"{field}['py_modules']", each)
            for each in _list(f"{field}['py_modules']", given.get("py_modules"))
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


# ----------------------------------------------------------------------------------------- pinning


def pinned(env: RuntimeEnv, field: str = "runtime_env") -> RuntimeEnv:
    """Read what an environment is made of, as it is now.

    Raises:
        ConfigError: a folder or file is not there, cannot be used, or is too large.
    """
    if not env:
        return env
    packages = env.packages
    if env.requirements_file:
        packages = _requirements(field, env)
    working_dir = _absolute(env.working_dir) if env.working_dir else ""
    modules = tuple(_absolute(each) for each in env.py_modules)
    digests = []
    for path in ([working_dir] if working_dir else []) + list(modules):
        kinds = (".zip",) if path == working_dir else (".py", ".whl", ".zip")
        if not Path(path).is_dir() and not (Path(path).is_file() and path.endswith(kinds)):
            raise ConfigError(field, path, f"is neither a folder nor a file ({', '.join(kinds)})")
        digests.append(digest_of(path, env.excludes))
    return msgspec.structs.replace(
        env,
        working_dir=working_dir,
        py_modules=modules,
        packages=tuple(_pinned_package(each) for each in packages),
        requirements_file="",
        digests=tuple(digests),
        excluded=(env.excludes,) * len(digests),
    )


def beside(own: RuntimeEnv, others: RuntimeEnv) -> RuntimeEnv:
    """Fill in what a pinned environment leaves open from another pinned one. Pure.

    Working directory, modules and packages are filled in each as a whole.
    """
    if not others or not own:
        return own or others

    packages = own if own.packages else others
    own_count, their_count = (1 if env.working_dir else 0 for env in (own, others))
    folder = (own, slice(own_count)) if own.working_dir else (others, slice(their_count))
    modules = (
        (own, slice(own_count, None)) if own.py_modules else (others, slice(their_count, None))
    )
    return RuntimeEnv(
        working_dir=own.working_dir or others.working_dir,
        py_modules=own.py_modules or others.py_modules,
        packages=packages.packages,
        installer=packages.installer,
        install_options=packages.install_options,
        excludes=own.excludes or others.excludes,
        digests=tuple(each for env, part in (folder, modules) for each in env.digests[part]),
        excluded=tuple(each for env, part in (folder, modules) for each in excludes_of(env)[part]),
    )


def excludes_of(env: RuntimeEnv) -> tuple[tuple[str, ...], ...]:
    """Say what is left out of each folder of a pinned environment. Pure."""
    # One that an older version saved has the same for all.
    return env.excluded or (env.excludes,) * len(env.digests)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _requirements(field: str, env: RuntimeEnv) -> tuple[str, ...]:
    path = Path(env.requirements_file).expanduser().absolute()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{field}[{env.installer!r}]", str(path), f"{error}") from None
    found = [line.split(" #")[0].strip() for line in lines]
    return tuple(line for line in found if line and not line.startswith("#"))


def _pinned_package(requirement: str) -> str:
    """Name a file by its whole path and, where it is one, by what it holds."""
    path = Path(requirement).expanduser()
    if path.suffix not in (".whl", ".gz", ".zip") or not path.is_file():
        return requirement
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # As installers write it; they check it.
    return f"{path.absolute().as_uri()}#sha256={digest}"


def digest_of(path: str, excludes: tuple[str, ...]) -> str:
    """Tell the content of a folder or file from others.

    Raises:
        ConfigError: it is larger than `MAX_FOLDER_BYTES`.
    """
    whole = hashlib.sha256()
    size = 0
    for name, file in files_of(path, excludes):
        size += file.stat().st_size
        if size > MAX_FOLDER_BYTES:
            raise ConfigError(
                "runtime_env",
                path,
                f"holds over {MAX_FOLDER_BYTES >> 20} MiB; leave some of it out with excludes, and "
                "have replicas read large data from where it lies",
            )
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        executable = bool(file.stat().st_mode & stat.S_IXUSR)
        whole.update(f"{name}\0{digest}\0{executable}\n".encode())
    return whole.hexdigest()[:32]


def files_of(path: str, excludes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Give the files below a folder with their names inside of it, in order; a file is itself."""
    root = Path(path)
    if root.is_file():
        yield root.name, root
        return
    patterns = (*ALWAYS_EXCLUDED, *excludes)
    for folder, folders, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = sorted(each for each in folders if not _excluded(inside / each, patterns))
        for name in sorted(names):
            # Sockets, pipes and links to nowhere are no content.
            if not _excluded(inside / name, patterns) and (Path(folder) / name).is_file():
                yield (inside / name).as_posix(), Path(folder) / name


def _excluded(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(
        fnmatch.fnmatch(path.name, pattern) or fnmatch.fnmatch(path.as_posix(), pattern.strip("/"))
        for pattern in patterns
    )
