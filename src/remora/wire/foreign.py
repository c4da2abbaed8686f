"""What somebody speaks who does not speak our protocol, told by the first bytes.

Rules: pure; for messages only, nothing depends on it.
"""

from __future__ import annotations

_HTTP = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ")
_HTTP2 = b"PRI * HTTP/2"
#: A TLS record begins with its type (22 is a handshake, 21 an alert) and a version, 3.x.
_TLS = (b"\x16\x03", b"\x15\x03")

NOT_TLS = (
    "it does not use TLS, and the nodes of this instance do: start programs and nodes of one "
    "instance with the same node_options"
)
ONLY_HERE_PLAIN = (
    "it uses TLS, and the nodes of this instance do not: start programs and nodes of one instance "
    "with the same node_options"
)


def is_tls(data: bytes) -> bool:
    """Tell the first bytes of TLS; fewer than two that may yet become that count as TLS."""
    return data.startswith(_TLS) or data in (b"\x16", b"\x15")


def describe(data: bytes) -> str:
    """Say what the first bytes of a peer look like; empty: like nothing that is known.

    Args:
        data: as much as has come.
    """
    if data.startswith(_TLS):
        return ONLY_HERE_PLAIN
    if data.startswith((*_HTTP, b"HTTP/", _HTTP2)):
        return (
            "it speaks HTTP: this port is for processes of the instance, the front door is another "
            "one (`remora status` tells)"
        )
    if data.startswith(b"SSH-"):
        return "it speaks SSH"
    return ""
