"""How soon the loss of another machine is noticed.

A process that dies closes its connections, and its machine says so. A machine that is cut off, or loses
its power, says nothing: without these options requests to it would wait for a quarter of an hour.
"""

from __future__ import annotations

import socket

from remora.types import Seconds

#: What was sent and not acknowledged for this long ends the connection.
UNANSWERED_S: Seconds = 5.0
#: On a connection without traffic the other side is asked after this long, and then this often.
_IDLE_S = 3
_AGAIN_S = 1
_OPTIONS = {
    socket.TCP_KEEPIDLE: _IDLE_S,
    socket.TCP_KEEPINTVL: _AGAIN_S,
    socket.TCP_USER_TIMEOUT: int(UNANSWERED_S * 1000),
}


def notice_loss(sock: socket.socket | None) -> None:
    """Let a connection end when its other side has not answered for `UNANSWERED_S`.

    On a listening socket: all connections that it accepts.

    Args:
        sock: what to set; None, or closed: what a transport has whose other side is gone already.

    Raises:
        OSError: the connection is lost.
    """
    if sock is None or sock.fileno() < 0:
        raise ConnectionResetError("the other side has closed the connection")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _OPTIONS.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def notices_loss(sock: socket.socket) -> bool:
    """Tell a TCP socket of Remora from others, by what `notice_loss` has done to it."""
    return all(
        sock.getsockopt(socket.IPPROTO_TCP, option) == value for option, value in _OPTIONS.items()
    )
