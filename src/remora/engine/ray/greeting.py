"""Asking whoever listens at an address whether it is Ray's head, and whether it takes this program.

Ray itself finds out as well, after half a minute and a screenful of lines. This is one small
request of gRPC, which a head answers within a millisecond.

Rules: knows gRPC's bytes, and nothing of Ray but the name of one method; decides nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from dataclasses import dataclass

from remora.errors import InstanceError

#: A head that is there takes a connection at once, wherever it is.
_ANSWER_LIMIT_S = 5.0
#: And greets soon, however busy it is.
_GREET_LIMIT_S = 15.0
#: How a client of gRPC begins (RFC 9113, 3.4).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: Types of frames, and flags: end of the headers, of the stream.
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_HEADERS, _END_STREAM = 4, 1
#: What every program that joins asks first, with an empty message. A head of a version that knows
#: no such method says so, which is as good.
_METHOD = b"/ray.rpc.NodeInfoGcsService/GetClusterId"
#: gRPC's server writes the status out, whatever it compresses otherwise; a byte is its length.
_STATUS = re.compile(rb"grpc-status(.)", re.DOTALL)
_UNAUTHENTICATED = 16


@dataclass(frozen=True)
class Greeting:
    """What a head said.

    Attributes:
        refuses: it wants a token, or another one than it was shown.
        is_here: it is on this machine.
    """

    refuses: bool
    is_here: bool


def greet(address: str, authorization: str = "", *, speaks_tls: bool = False) -> Greeting:
    """Ask Ray's head at `host:port` whether it takes this program. Blocks.

    Args:
        address: where it listens.
        authorization: what to show of a token; empty: nothing.
        speaks_tls: with Ray's own TLS the handshake is Ray's: only that somebody listens is seen.

    Raises:
        InstanceError: nobody answers there, or somebody who is not Ray's head.
    """
    host, _, port = address.rpartition(":")
    try:
        where = host.strip("[]"), int(port)
        with socket.create_connection(where, timeout=_ANSWER_LIMIT_S) as connection:
            is_here = _is_here(connection.getsockname()[0], connection.getpeername()[0])
            if speaks_tls:
                return Greeting(refuses=False, is_here=is_here)
            connection.settimeout(_GREET_LIMIT_S)
            return Greeting(_ask(connection, address, authorization), is_here)
    except (OSError, OverflowError) as error:
        raise InstanceError(
            f"No Ray cluster answers at {address}: {error}. Is that the address of its head, and may "
            "this machine reach it? `ray status --address` asks the same."
        ) from None


def _is_here(own: str, peer: str) -> bool:
    """Tell by the two ends of a connection whether they are on one machine. Pure."""
    # The kernel takes an own address for the near end, too, when it is asked for it.
    return own == peer or ipaddress.ip_address(peer.partition("%")[0]).is_loopback


def _ask(connection: socket.socket, address: str, authorization: str) -> bool:
    """See that whoever listens speaks as Ray's head does; tell whether it wants another token.

    Raises:
        InstanceError: it does not.
    """
    try:
        connection.sendall(request(address, authorization))
        answer = connection.recv(4096)
        # The type of a frame is its fourth byte.
        while 0 < len(answer) < 4 and (more := connection.recv(4096)):
            answer += more
    except TimeoutError:
        said = f"says nothing within {_GREET_LIMIT_S:g} s"
    except ConnectionError:
        said = "closes the connection"
    else:
        if len(answer) > 3 and answer[3] == _SETTINGS:
            return _status(connection, answer) == _UNAUTHENTICATED
        said = f"says {answer[:20]!r}" if answer else "closes the connection"
    raise InstanceError(
        f"What listens at {address} is not Ray's head: it {said}. The head's port is 6379 if "
        "`ray start --head` was given no other; that of its dashboard, and those of Ray Client and "
        "of other nodes, are none of it."
    )


def _status(connection: socket.socket, answer: bytes) -> int | None:
    """Read gRPC's status of the request; None: it does not come, and Ray will see why."""
    deadline = time.monotonic() + _ANSWER_LIMIT_S
    while (found := _read_status(answer)) is None:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            more = connection.recv(4096)
        except OSError:
            return None
        if not more:
            return None
        answer += more
    return found


def _read_status(answer: bytes) -> int | None:
    """Find gRPC's status; None: it is not there whole, or no number. Pure."""
    found = _STATUS.search(answer)
    if found is None:
        return None
    text = answer[found.end() : found.end() + found[1][0]]
    return int(text) if len(text) == found[1][0] and text.isdigit() else None


def request(address: str, authorization: str) -> bytes:
    """Write what a client of gRPC sends to ask one thing. Pure."""
    # Names and values by their numbers in HPACK's table (RFC 7541, A): :method POST, :scheme http,
    # :path, :authority, content-type, te, authorization. Nothing is to be kept by the other side.
    headers = b"".join(
        (
            b"\x83\x86",
            b"\x04" + _text(_METHOD),
            b"\x01" + _text(address.encode()),
            b"\x0f\x10" + _text(b"application/grpc"),
            b"\x00" + _text(b"te") + _text(b"trailers"),
            b"\x1f\x08" + _text(authorization.encode()) if authorization else b"",
        )
    )
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, 1, headers),
            # Not compressed, of no bytes.
            _frame(_DATA, _END_STREAM, 1, bytes(5)),
        )
    )


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + content


def _text(value: bytes) -> bytes:
    """Write a text as HPACK has it: its length in sevens of bits, then itself. Pure."""
    rest = len(value) - 127
    if rest < 0:
        return bytes((len(value),)) + value
    length = bytearray((127,))
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes((*length, rest)) + value
