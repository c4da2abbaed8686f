"""The files that processes log to: their names, how they are turned over, and which ones go.

A file belongs to one process (those of builders and policies, which say little, share theirs). Its descriptors 1 and 2 may lead there as well, so that what is
written by no Python code (a library in C, the interpreter's last words) is in it, whatever
becomes of the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

from remora.types import ReplicaID

#: Replicas of one deployment that have ended and whose files are kept.
KEPT_OF_DEPLOYMENT = 10
#: And of all deployments, those of earlier instances too.
KEPT_OF_ALL = 1000
#: What a file's name may have in bytes, with room for the suffix of an old one.
_MAX_NAME_BYTES = 200
_REPLICA = re.compile(r"replica_(?P<app>[^+]*)\+(?P<deployment>[^+]*)\+(?P<tag>[^+]*)\.log")


def replica_log_name(replica_id: ReplicaID) -> str:
    """Name the log file of a replica: `replica_<application>+<deployment>+<own part>.log`. Pure."""
    deployment, _, tag = replica_id.rpartition("#")
    app, _, name = deployment.rpartition("/")
    return f"replica_{_part(app)}+{_part(name)}+{_part(tag)}.log"


def _part(text: str) -> str:
    quoted = quote(text, safe="")
    if len(quoted) <= _MAX_NAME_BYTES // 3:
        return quoted
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    # Not in the middle of what stands for one character.
    return re.sub(r"%.?$", "", quoted[: _MAX_NAME_BYTES // 3 - 13]) + "~" + digest


def replica_of(name: str) -> tuple[str, str, str] | None:
    """Application, deployment and own part of a replica by its log file's name. Pure."""
    found = _REPLICA.fullmatch(name)
    return None if found is None else tuple(map(unquote, found.groups()))  # type: ignore[return-value]


def is_log_of(name: str, app: str, deployment: str = "") -> bool:
    """Say whether a file is of a replica of `app`, or of its `deployment`. Pure."""
    found = _REPLICA.fullmatch(name)
    return (
        found is not None
        and found["app"] == _part(app)
        and (not deployment or found["deployment"] == _part(deployment))
    )


class LogFile:
    """The file that one process appends to, with the old ones beside it.

    Concurrency: one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        max_old: int,
        redirected: tuple[int, ...] = (),
        copy: int | None = None,
    ) -> None:
        """Open the file.

        Args:
            path: is made, with its folder, if it is not there.
            max_bytes: a file of this size is put aside.
            max_old: so many of them are kept.
            redirected: descriptors that lead to the file as well.
            copy: a descriptor that gets what is written here, too; None: there is none.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        self.max_bytes = max_bytes
        self.max_old = max_old
        self._redirected = redirected
        self._copy = copy
        self._fd = -1
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        if self.path.is_symlink():
            # It led to where the log was before.
            self.path.unlink()
        try:
            fd = os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, flags, 0o600)
        try:
            # Held for as long as anything leads to the file: nobody deletes it meanwhile.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            pass  # A file system without locks; what has not ended is newer than what has.
        for target in self._redirected:
            os.dup2(fd, target)
        before, self._fd = self._fd, fd
        if before >= 0:
            os.close(before)

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            OSError: not all of it could be written.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        if self._copy is not None:
            os.write(self._copy, data)

    @property
    def is_due(self) -> bool:
        """There is something to tend."""
        return self._is_gone() or os.fstat(self._fd).st_size >= self.max_bytes

    def _is_gone(self) -> bool:
        """Somebody has deleted or moved the file."""
        try:
            return self.path.stat().st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return True

    def tend(self) -> None:
        """Put the file aside if it is full, and make it anew if somebody has moved or deleted it.

        Raises:
            OSError: it cannot be.
        """
        if self._is_gone():
            self._open()
        elif os.fstat(self._fd).st_size >= self.max_bytes:
            self._put_aside()
            self._open()

    def _put_aside(self) -> None:
        if self.max_old == 0:
            self.path.unlink(missing_ok=True)
            return
        for number in range(self.max_old, 0, -1):
            newer = self.path if number == 1 else old_path(self.path, number - 1)
            if newer.exists():
                newer.replace(old_path(self.path, number))

    def close(self) -> None:
        """Let go of the file; descriptors that lead there still do."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def old_path(path: Path, number: int) -> Path:
    """Name an old file; 1 is the newest of them."""
    return path.with_name(f"{path.name}.{number}")


def sweep(folder: Path, own: Path) -> None:
    """Delete the files of replicas that have ended, but for the newest ones.

    Args:
        folder: where the files are.
        own: the file of the replica that does this; it says which deployment's are looked at.
    """
    try:
        names = [each.name for each in folder.iterdir() if replica_of(each.name) is not None]
        mine = own.name.rpartition("+")[0]
        num_mine = sum(name.rpartition("+")[0] == mine for name in names)
        # Most often there is nothing to do, and nothing more to look at.
        if num_mine <= KEPT_OF_DEPLOYMENT + 1 and len(names) <= KEPT_OF_ALL:
            return
        entries = [((folder / name).lstat().st_mtime, name) for name in names]
    except OSError:
        return
    for name in doomed(entries, own.name):
        path = folder / name
        if not is_in_use(path):
            target = path.resolve() if path.is_symlink() else path
            for each in (path, *target.parent.glob(f"{_escaped(target.name)}*")):
                each.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def doomed(entries: Iterable[tuple[float, str]], own: str) -> list[str]:
    """Say which log files of replicas are too many, the oldest first. Pure.

    Args:
        entries: time of the last change and name of what is in the folder.
        own: the name of the file that is just being made.
    """
    logs = sorted((entry for entry in entries if replica_of(entry[1]) is not None), reverse=True)
    mine = own.rpartition("+")[0]
    same = [name for _, name in logs if name.rpartition("+")[0] == mine and name != own]
    gone = dict.fromkeys(same[KEPT_OF_DEPLOYMENT:])
    gone.update(dict.fromkeys(name for _, name in logs[KEPT_OF_ALL:] if name != own))
    return list(gone)[::-1]


def is_in_use(path: Path) -> bool:
    """Say whether a process, or one that it started, still has the file open."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
