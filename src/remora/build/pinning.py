"""Environments as they are when an application is built: paths are absolute, contents are known.

An engine builds from a pinned environment, builds equal content once, and refuses content that has
changed since.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from remora.engine.contents import digest_of
from remora.errors import ConfigError
from remora.options.resources import RuntimeEnv
from remora.options.runtime_env import excludes_of


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
    parts: list[tuple[str, str, tuple[str, ...]]] = [
        (f"['py_modules'][{index}]", path, (".py", ".whl", ".zip"))
        for index, path in enumerate(modules)
    ]
    if working_dir:
        parts.insert(0, ("['working_dir']", working_dir, (".zip",)))
    digests = [_digest(f"{field}{key}", path, kinds, env.excludes) for key, path, kinds in parts]
    return msgspec.structs.replace(
        env,
        working_dir=working_dir,
        py_modules=modules,
        packages=tuple(_pinned_package(each) for each in packages),
        requirements_file="",
        digests=tuple(digests),
        excluded=(env.excludes,) * len(digests),
    )


def _digest(field: str, path: str, kinds: tuple[str, ...], excludes: tuple[str, ...]) -> str:
    if not Path(path).is_dir() and not (Path(path).is_file() and path.endswith(kinds)):
        raise ConfigError(field, path, f"is neither a folder nor a file ({', '.join(kinds)})")
    try:
        return digest_of(path, excludes, field)
    except OSError as error:
        raise ConfigError(field, path, f"cannot be read: {error}") from None


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
