"""Takes pieces of environments away: out of sight in one step, and then off the disk.

Theory of operation: a piece is moved aside before anything of it is deleted. So nobody finds half of
one, nobody waits for a large one to be deleted, and what cannot be deleted is in nobody's way; the
next sweep tries again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from remora.engine.local.pieces import complete_file

#: Beside the pieces: what is being deleted. No piece is called so.
ASIDE = ".removed"


def move_aside(piece: Path) -> Path:
    """Take a piece out of its place, whole or not; returns where it is for `delete`.

    Who calls has the lock of the piece alone.

    Raises:
        OSError: not even that it is complete can be taken back; nothing has changed.
    """
    complete_file(piece).unlink(missing_ok=True)
    # With a number of its own: an earlier one of that name may still be there.
    aside = piece.parent / ASIDE / f"{piece.name}.{os.urandom(6).hex()}"
    try:
        aside.parent.mkdir(exist_ok=True)
        piece.rename(aside)
    except OSError:
        # A full disk, or it is not there at all. It does not count any more, wherever it lies.
        return piece
    return aside


def delete(path: Path) -> str:
    """Delete a folder; says why something of it is left, empty: nothing is."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return ""
    except OSError:
        _make_writable(path)
        shutil.rmtree(path, ignore_errors=True)
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error)
    return ""


def _make_writable(path: Path) -> None:
    """Packages may bring folders that their owner cannot change."""
    try:
        path.chmod(0o700)
        for place, folders, _ in os.walk(path):
            for name in folders:
                folder = Path(place) / name
                if not folder.is_symlink():
                    folder.chmod(0o700)
    except OSError:
        pass  # what is left is told
