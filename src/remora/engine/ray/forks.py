"""A child that a user's code forks must not look like the process itself.

Whoever talks to a process hears of its end when its sockets close, and so does Ray. A forked child
has a copy of each, so until it ends nobody would know that its parent is gone: requests would wait,
and nothing would replace it. Nor can a child do anything with them. So it closes them first of all.

The embedded engine needs none of this: there the supervisor is the parent, and ends the children.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from remora.transport import tcp


def let_go_in_children(folders: Iterable[Path], listening: Iterable[socket.socket]) -> None:
    """Have children that this process forks close what leads to it, to others like it, and to Ray.

    Args:
        folders: in which Unix sockets lie.
        listening: of this process; what they have accepted is closed, too.
    """
    prefixes = tuple(f"{folder}/" for folder in folders)
    ports = frozenset(_port(sock) for sock in listening) - {0}
    os.register_at_fork(after_in_child=lambda: close_sockets(prefixes, ports))


def close_sockets(prefixes: tuple[str, ...], ports: Collection[int] = ()) -> None:
    """Close sockets in forked children; TCP sockets of Remora whichever their ends are.

    Args:
        prefixes: Unix sockets with an own or another end whose path begins with one of these.
        ports: TCP sockets with an own end at one of these.
    """
    # All names at first: what is closed and opened meanwhile changes the folder.
    for path in list(Path("/proc/self/fd").iterdir()):
        fd = int(path.name)
        try:
            if _leads_to(fd, prefixes, ports):
                os.close(fd)
        except OSError:
            continue  # The one that listed the folder, or a socket without another end.


def _port(sock: socket.socket) -> int:
    return 0 if sock.family == socket.AF_UNIX else int(sock.getsockname()[1])


def _leads_to(fd: int, prefixes: tuple[str, ...], ports: Collection[int]) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    # On a copy, because the object closes what it is made of.
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # The second: what leads from here to processes of other nodes.
            return _port(sock) in ports or tcp.notices_loss(sock)
        if str(sock.getsockname()).startswith(prefixes):
            return True
        return str(sock.getpeername()).startswith(prefixes)
