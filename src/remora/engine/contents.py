"""What a folder or file of an environment holds: which files count, and a digest that tells it.

An application names its folders by digest when it is built, and what is copied for a process is
compared with that: both look in here.

Rules: reads files, writes none.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from remora.errors import ConfigError

#: Never part of what a folder holds.
ALWAYS_EXCLUDED = (".git", "__pycache__", "*.pyc", ".venv")
#: Of one folder, unpacked. Data that is larger belongs where replicas read it from.
MAX_FOLDER_BYTES = 512 * 1024 * 1024


def digest_of(path: str, excludes: tuple[str, ...], field: str = "runtime_env") -> str:
    """Tell the content of a folder or file from others.

    Args:
        path: of the folder or file.
        excludes: patterns of what is left out.
        field: the option that names it, for people.

    Raises:
        ConfigError: it is larger than `MAX_FOLDER_BYTES`.
        OSError: something in it cannot be read.
    """
    whole = hashlib.sha256()
    size = 0
    for name, file in files_of(path, excludes):
        size += file.stat().st_size
        if size > MAX_FOLDER_BYTES:
            raise ConfigError(
                field,
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
