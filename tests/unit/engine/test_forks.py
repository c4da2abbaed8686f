"""A forked child holds no socket that shows others whether its parent lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from remora.engine.ray.forks import close_sockets
from remora.transport import tcp


def test_what_lies_in_the_folders_is_closed_at_both_ends_and_nothing_else(
    remora_home: Path,
) -> None:
    path, other = str(remora_home / "a.sock"), str(remora_home.parent / f"{os.getpid()}.sock")
    listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for listener, place in zip(listeners, (path, other), strict=True):
        listener.bind(place)
        listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    accepted, _ = listeners[0].accept()
    ours, others = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    caller = socket.create_connection(ours.getsockname())
    called, _ = ours.accept()
    # To a process on another node, and to somebody else there.
    peer, stranger = (socket.create_connection(others.getsockname()) for _ in range(2))
    tcp.notice_loss(peer)
    closed = [listeners[0], client, accepted, ours, called, peer]
    kept = [listeners[1], *socket.socketpair(), others, caller, stranger]
    try:
        close_sockets((f"{remora_home}/",), {ours.getsockname()[1]})
        assert [_is_open(sock.fileno()) for sock in closed] == [False] * 6
        assert [_is_open(sock.fileno()) for sock in kept] == [True] * 6
    finally:
        for sock in closed:
            sock.detach()
        for sock in kept:
            sock.close()
        Path(other).unlink()


def _is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()
