"""Shows on a terminal what the processes of an instance log: theirs is a file each.

The kernel says which file has grown (inotify); what is new is copied to the descriptor that the
owner of the instance looks at. Where that does not take it, or a process logs faster than anybody reads, the
copy waits or leaves something out: the files have everything.

Rules: one thread, never blocks, standard library only.
"""

from __future__ import annotations

import os
import select
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from remora.types import Seconds

_IN_MODIFY, _IN_CREATE, _IN_MOVED_TO, _IN_DELETE = 0x2, 0x100, 0x80, 0x200
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_HEAD = struct.Struct("iIII")
#: Not the requests, and not what the supervisor itself says.
_SHOWN = ("replica_", "controller", "proxy-", "builder", "policy", "admin")
#: Copied of one file before the next one has its turn.
_PART_BYTES = 64 * 1024
#: What lies further back than this is not shown any more.
_MAX_BEHIND_BYTES = 1024 * 1024
#: Between two tries where something is left to show, or nothing tells what has grown.
_AGAIN_S: Seconds = 0.1


@dataclass
class _Followed:
    fd: int
    inode: int
    #: Where the part begins that was not shown.
    at: int
    #: A link leads to it from the folder, in which nothing tells that it has grown.
    is_elsewhere: bool = False


class Echo:
    """Copies what is appended to the log files of a folder."""

    def __init__(self, folder: Path, out: int) -> None:
        """Begin with what is appended from now on.

        Args:
            folder: of the log files; it exists.
            out: a descriptor.
        """
        self._folder = folder
        self._out = out
        self._files: dict[str, _Followed] = {}
        self._behind: set[str] = set()
        self._is_over = False
        #: Readable when something has grown; None: the kernel does not tell.
        self.fd = self._watch()
        for name in self._names():
            self._open(name, at_end=True)

    def _watch(self) -> int | None:
        # Not before the template was forked: it costs time, and none of its children need it.
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        fd = int(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
        if fd < 0:
            return None
        # Deleted ones too: what is open here keeps its place on the disk.
        mask = _IN_MODIFY | _IN_CREATE | _IN_MOVED_TO | _IN_DELETE
        if libc.inotify_add_watch(fd, os.fsencode(self._folder), mask) < 0:
            os.close(fd)
            return None
        return fd

    def _names(self) -> list[str]:
        return sorted(each.name for each in self._folder.iterdir() if _is_shown(each.name))

    @property
    def due_in_s(self) -> Seconds | None:
        """When to call `copy` although nothing was told; None: no need to."""
        waits = self._behind or self.fd is None
        return _AGAIN_S if waits or any(f.is_elsewhere for f in self._files.values()) else None

    def copy(self) -> None:
        """Show what is new."""
        elsewhere = {name for name, each in self._files.items() if each.is_elsewhere}
        for name in self._grown() | self._behind | elsewhere:
            self._copy(name)

    def finish(self, limit_s: Seconds) -> None:
        """Show the rest: nothing is appended any more."""
        self._is_over = True
        deadline = time.monotonic() + limit_s
        self._behind.update(self._names())
        while self._behind and time.monotonic() < deadline:
            self.copy()
            if self._behind:
                select.select([], [self._out], [], max(0.0, deadline - time.monotonic()))

    def close_in_fork(self) -> None:
        """Let go of everything, in a forked child."""
        for each in self._files.values():
            os.close(each.fd)
        self._files.clear()
        if self.fd is not None:
            os.close(self.fd)

    def _all(self) -> set[str]:
        """What there is, and what was there."""
        return {*self._names(), *self._files}

    def _grown(self) -> set[str]:
        if self.fd is None:
            return self._all()
        found: set[str] = set()
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return found
        at = 0
        while at < len(data):
            watch, _, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            if watch < 0:
                return self._all()  # More happened than the kernel keeps.
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            if _is_shown(name):
                found.add(name)
        return found

    def _open(self, name: str, *, at_end: bool = False) -> _Followed | None:
        try:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        found = os.fstat(fd)
        is_elsewhere = (self._folder / name).is_symlink()
        followed = _Followed(fd, found.st_ino, found.st_size if at_end else 0, is_elsewhere)
        self._files[name] = followed
        return followed

    def _copy(self, name: str) -> None:
        followed = self._files.get(name) or self._open(name)
        if followed is None:
            self._behind.discard(name)
            return
        if not self._copy_part(name, followed):
            self._behind.add(name)
            return
        self._behind.discard(name)
        try:
            inode = (self._folder / name).stat().st_ino
        except OSError:
            inode = None
        if inode != followed.inode:
            os.close(followed.fd)
            del self._files[name]
            if inode is not None:
                # What is in the new one by now.
                self._behind.add(name)

    def _copy_part(self, name: str, followed: _Followed) -> bool:
        """Show one part of what is new of a file; True: there is no more."""
        size = os.fstat(followed.fd).st_size
        if size - followed.at > _MAX_BEHIND_BYTES:
            left_out = size - followed.at - _PART_BYTES
            note = f"remora: {left_out} bytes are not shown here, see {self._folder / name}\n"
            if not self._show(note.encode()):
                return False
            followed.at = size - _PART_BYTES
        data = os.pread(followed.fd, _PART_BYTES, followed.at)
        end = data.rfind(b"\n") + 1
        # Whole lines, so that those of two processes do not mix; but a line may be very long.
        if not self._is_over and (end or len(data) < _PART_BYTES):
            data = data[:end]
        if not data:
            return True
        if not self._show(data):
            return False
        followed.at += len(data)
        return followed.at >= size

    def _show(self, data: bytes) -> bool:
        """Write where the owner sees it, unless that would wait."""
        try:
            while data:
                if not select.select([], [self._out], [], 0)[1]:
                    return False
                # A pipe that takes anything takes this much.
                data = data[os.write(self._out, data[:4096]) :]
        except OSError:
            return True  # Nobody looks any more.
        return True


def _is_shown(name: str) -> bool:
    return name.endswith(".log") and name.startswith(_SHOWN)
