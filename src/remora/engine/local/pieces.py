"""Pieces of environments as they lie on the disk, and who may do what with one when.

Theory of operation: a piece is a folder, named by what is in it. Beside it lies `….lock` and, once
it is whole, `….complete`, which has its size in it and was changed when the piece was last known to
be used or needed. Who uses a piece shares its lock for as long as it does: the engine until the
process is up, the process until it ends. Who builds or removes one has the lock alone. The kernel
lets go of a lock with the last process that holds it, however that ends, so there is nothing to put
right after anybody.

A lock goes with its piece. Somebody may have opened it before, and get it when nobody else knows it
any more: so whoever gets a lock looks whether it is still the one of that name.

Rules: standard library only; every process that has an environment imports this.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

_VENV = "venv"


def venv_of(piece: Path) -> Path:
    """Name the virtual environment of a piece with packages."""
    return piece / _VENV


def python_of(piece: Path) -> Path:
    """Name the interpreter of a piece with packages."""
    return venv_of(piece) / "bin" / "python"


def complete_file(piece: Path) -> Path:
    """Name the file that says that a piece is whole."""
    return _beside(piece, "complete")


def lock_file(piece: Path) -> Path:
    """Name the file that is locked."""
    return _beside(piece, "lock")


def _beside(piece: Path, kind: str) -> Path:
    # Names of modules have dots, so the whole name stays: each version has files of its own. And
    # nothing of ours lies among what is the user's.
    return piece.with_name(f"{piece.name}.{kind}")


def is_complete(piece: Path) -> bool:
    """Say whether a piece can be used."""
    return complete_file(piece).is_file() and piece.is_dir()


def hold(piece: Path, *, wait: bool = False) -> int | None:
    """Keep a piece from being removed; returns a descriptor that does so while it is open.

    None: it is not there, or somebody builds or removes it. With `wait`, whoever only looks whether
    it can be removed is waited for.
    """
    if not is_complete(piece):
        return None
    try:
        fd = lock(piece, fcntl.LOCK_SH if wait else fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return None
    if not is_complete(piece):
        os.close(fd)
        return None
    touch(piece)
    return fd


def hold_all(pieces: Iterable[str]) -> str:
    """Keep pieces for as long as this process lives; returns the first that is not there."""
    for piece in pieces:
        if hold(Path(piece), wait=True) is None:
            return piece
    return ""


def touch(piece: Path) -> None:
    """Remember that a piece is used now."""
    try:
        os.utime(complete_file(piece))
    except OSError:
        pass  # it looks less recently used than it is


def lock(piece: Path, how: int) -> int:
    """Lock a piece until the descriptor that is returned is closed.

    Args:
        piece: need not be there.
        how: as for `fcntl.flock`.

    Raises:
        BlockingIOError: somebody else has it, and `how` says not to wait.
        OSError: it cannot be locked.
    """
    while True:
        fd = os.open(lock_file(piece), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            if _is_of_that_name(fd, lock_file(piece)):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_of_that_name(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def size_of(folder: Path) -> int:
    """Add up the bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(place) / name).st_size
            except OSError:
                pass  # gone meanwhile
    return total
