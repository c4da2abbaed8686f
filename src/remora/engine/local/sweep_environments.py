"""Removes what was built for processes and is not needed, in a process of its own.

Theory of operation: which pieces go is decided in `core/environments.py`, by what the controller
says is needed, and when each was last used. Before one goes its lock is taken without waiting: a
process that uses it has a share in the lock, also one that nobody knows of any more, so it stays.
Whatever kills this process, a piece is there as a whole, or does not count: the next sweep goes on.

Rules: blocks as long as it likes, needs no room on the disk, and decides nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from remora.core.environments import CACHE_LIMITS, CacheLimits, Piece, superfluous
from remora.engine import linux
from remora.engine.local.pieces import complete_file, is_complete, lock, lock_file, size_of, touch
from remora.engine.local.removal import ASIDE, delete, move_aside

#: Names as `environments.py` makes them. Whatever else lies there is not ours.
_NAME = re.compile(r"(?:packages|folder|module-.+)-[0-9a-f]{32}")
_LOG = re.compile(rf"environment-({_NAME.pattern})\.log")


@dataclass
class Swept:
    """What came of a sweep.

    Attributes:
        gone: names of pieces that were removed, and why.
        num_bytes: what they held.
        left: what cannot be deleted, and why.
    """

    gone: list[tuple[str, str]] = field(default_factory=list)
    num_bytes: int = 0
    left: list[str] = field(default_factory=list)


def sweep(
    folder: Path,
    logs: Path,
    needed: Collection[str],
    now_unix_s: float,
    limits: CacheLimits = CACHE_LIMITS,
) -> Swept:
    """Remove what is not needed.

    Args:
        folder: where the pieces are.
        logs: where the output of their builders is.
        needed: names of pieces that something may need.
        now_unix_s: the time, as Unix time.
        limits: what is kept although nothing needs it.

    Raises:
        OSError: the folder cannot be read.
    """
    swept = Swept()
    for left_over in list((folder / ASIDE).glob("*")):
        _delete(left_over, swept)
    names = _names(folder)
    for name in names:
        if not is_complete(folder / name):
            _remove(folder / name, None, swept)
        elif name in needed:
            touch(folder / name)
    pieces = [piece for name in names if (piece := _looked_at(folder / name, now_unix_s))]
    for piece, why in superfluous(pieces, needed, now_unix_s, limits):
        if _remove(folder / piece.name, piece, swept):
            swept.gone.append((piece.name, why))
            swept.num_bytes += piece.num_bytes
    _sweep_logs(logs, set(_names(folder)), now_unix_s - limits.max_idle_s)
    return swept


def _names(folder: Path) -> list[str]:
    """Name all pieces that something is there of."""
    names = (each.name.removesuffix(".lock").removesuffix(".complete") for each in folder.iterdir())
    return sorted({name for name in names if _NAME.fullmatch(name)})


def _looked_at(piece: Path, now_unix_s: float) -> Piece | None:
    try:
        used_unix_s = complete_file(piece).stat().st_mtime
        said = complete_file(piece).read_text()
    except OSError:
        return None  # it does not count, and is removed next time
    if used_unix_s > now_unix_s:
        # The clock was wrong then; as it stands, it would never go.
        touch(piece)
        used_unix_s = now_unix_s
    # Older versions wrote no size.
    num_bytes = int(said) if said.isdecimal() else size_of(piece)
    return Piece(piece.name, num_bytes, used_unix_s)


def _remove(piece: Path, known: Piece | None, swept: Swept) -> bool:
    """Remove a piece, unless somebody uses, builds or removes it, or has done so since.

    Args:
        piece: the place.
        known: the piece as it was decided on; None: it was not complete.
        swept: is told what is left.
    """
    try:
        held = lock(piece, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        touch(piece) if known is not None else None
        return False
    except OSError as error:
        swept.left.append(f"{piece}: {error}")
        return False
    try:
        if is_complete(piece) if known is None else _used_since(piece, known):
            return False
        aside = move_aside(piece)
        if aside == piece:
            _delete(piece, swept)
        lock_file(piece).unlink(missing_ok=True)
    except OSError as error:
        swept.left.append(f"{piece}: {error}")
        return False
    finally:
        os.close(held)
    if aside != piece:
        _delete(aside, swept)
    return True


def _used_since(piece: Path, known: Piece) -> bool:
    try:
        return complete_file(piece).stat().st_mtime > known.used_unix_s
    except FileNotFoundError:
        return False


def _delete(path: Path, swept: Swept) -> None:
    if why := delete(path):
        swept.left.append(f"{path}: {why}")


def _sweep_logs(logs: Path, names: Collection[str], before_unix_s: float) -> None:
    """Delete what builders of pieces said that are gone, once nobody will ask any more."""
    for log in _logs_of_others(logs, names):
        try:
            if log.stat().st_mtime < before_unix_s:
                log.unlink()
        except OSError:
            pass  # the next sweep tries again


def _logs_of_others(logs: Path, names: Collection[str]) -> Iterator[Path]:
    for log in logs.glob("environment-*.log"):
        found = _LOG.fullmatch(log.name)
        if found is not None and found[1] not in names:
            yield log


def main() -> None:
    """Sweep as standard input says, and say on standard output what came of it."""
    linux.die_with_parent()
    order = json.load(sys.stdin)
    if os.getppid() != order["parent"]:
        sys.exit(1)
    # Whoever serves comes first.
    os.nice(10)
    try:
        swept = sweep(Path(order["folder"]), Path(order["logs"]), order["needed"], time.time())
    except OSError as error:
        sys.exit(str(error))
    said = {"gone": swept.gone, "num_bytes": swept.num_bytes, "left": swept.left}
    print(json.dumps(said))  # noqa: T201 - for the process that waits
