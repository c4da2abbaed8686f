"""The folders of sockets that lie outside of their state folders: kept, left, and swept.

A state folder with a long path has its sockets in a short one among the temporary files
(`Home.sockets`). An instance shares a lock on that folder while it runs, and removes it at its end. One
that was killed leaves it behind; the next start of any instance of this user removes it, if nobody can be
using it.

Rules: standard library and the lowest layer of the package only; the supervisor imports this.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from remora import home as homes
from remora.home import Home
from remora.types import Seconds

#: A sweep holds the lock for less than a millisecond.
_LOCK_LIMIT_S: Seconds = 0.5
#: One that was made a moment ago is about to be taken.
_YOUNG_S: Seconds = 60.0
#: No start takes longer because of more than this many.
_MOST_AT_ONCE = 200
_RNG = random.Random()
#: What an instance puts there; `new` is the draft of a `beat`.
_OURS = re.compile(r"[a-z0-9-]+\.(sock|beat|new)|proxies")


@dataclass(frozen=True)
class Folder:
    """A folder among the temporary files, as it was found.

    Attributes:
        name: of it.
        is_folder: and no link or file.
        uid: of its owner.
        changed_at_unix_s: when something was put into it or removed.
        content: names of what is in it.
        has_listener: a process listens on one of its sockets.
    """

    name: str
    is_folder: bool
    uid: int
    changed_at_unix_s: float
    content: tuple[str, ...]
    has_listener: bool


def may_be_left(folder: Folder, uid: int, now_unix_s: float) -> bool:
    """Whether a folder is of an instance of this user's that may be gone; the lock says if it is.

    Pure.
    """
    return (
        re.fullmatch(rf"remora-{uid}-[0-9a-f]{{12}}", folder.name) is not None
        and folder.is_folder
        and folder.uid == uid
        and not folder.has_listener
        and now_unix_s - folder.changed_at_unix_s >= _YOUNG_S
        and all(_OURS.fullmatch(each) for each in folder.content)
    )


def hold(home: Home) -> int | None:
    """Share the lock on the folder of sockets of an instance, which is made if need be.

    Returns:
        what holds the lock while it is open; None: the folder is inside the state folder.

    Raises:
        OSError: it cannot be made.
    """
    if home.sockets.is_relative_to(home.root):
        home.make()
        return None
    deadline = time.monotonic() + _LOCK_LIMIT_S
    while True:
        make(home)
        try:
            fd = os.open(home.sockets, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # It was swept in this moment.
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if _is_still(home.sockets, fd):
                return fd
        except BlockingIOError:
            # Somebody sweeps it.
            if time.monotonic() >= deadline:
                os.close(fd)
                raise
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(0.0005)


def make(home: Home) -> None:
    """Make the folders of an instance, also while somebody sweeps.

    Raises:
        OSError: they cannot be made.
    """
    deadline = time.monotonic() + _LOCK_LIMIT_S
    while True:
        try:
            home.make()
        except FileNotFoundError:
            # Swept between two looks at it.
            if time.monotonic() >= deadline:
                raise
        else:
            return


def leave(home: Home) -> None:
    """Remove the folder of sockets at the end of an instance, unless it is inside the state folder."""
    if not home.sockets.is_relative_to(home.root):
        try:
            home.sockets.rmdir()
        except OSError:
            pass  # Something is in it that is not ours.


def sweep(rng: random.Random = _RNG) -> int:
    """Remove the folders of instances that are gone; returns how many those were.

    Args:
        rng: which are looked at where there are too many for once, so that each has its turn also
            where others stay for ever.
    """
    parent, uid = homes.SHORT_FOLDER, os.getuid()
    now, listening = time.time(), _listening()
    try:
        paths = list(parent.glob(f"remora-{uid}-*"))
    except OSError:
        return 0
    chosen = rng.sample(paths, min(len(paths), _MOST_AT_ONCE))
    found = (_look(path, listening) for path in chosen)
    left = [each for each in found if each is not None and may_be_left(each, uid, now)]
    return sum(_remove(parent / each.name) for each in left)


def _look(path: Path, listening: Collection[str]) -> Folder | None:
    """See what there is of a folder; None: it is gone, or closed to us."""
    try:
        seen = path.lstat()
        is_folder = stat.S_ISDIR(seen.st_mode)
        content = tuple(each.name for each in path.iterdir()) if is_folder else ()
    except OSError:
        return None
    has_listener = any(str(path / name) in listening for name in content)
    return Folder(path.name, is_folder, seen.st_uid, seen.st_mtime, content, has_listener)


def _listening() -> Collection[str]:
    """The paths of all Unix sockets that are bound on this machine."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    return {line.rpartition(" ")[2] for line in lines}


def _remove(path: Path) -> bool:
    """Remove a folder and what is in it, if nobody shares its lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_still(path, fd):
            return False
        for each in path.iterdir():
            if _OURS.fullmatch(each.name):
                each.unlink()
        # Who waits for the lock sees that this is no folder any more.
        path.rmdir()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _is_still(path: Path, fd: int) -> bool:
    """Whether what is open there is what the path leads to."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
