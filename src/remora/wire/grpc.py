"""What a proxy is told of the gRPC services that it offers: plain data, no code of the user's.

Made by the program that starts the instance, which has imported the user's generated modules.
"""

from __future__ import annotations

import hashlib

import msgspec

from remora.wire.codec import to_json


class GrpcMethod(msgspec.Struct, array_like=True, frozen=True):
    """One method of a service."""

    name: str
    request_streaming: bool
    response_streaming: bool
    #: Full names of the message types.
    request_type: str
    response_type: str
    #: Python module that defines the request's class; a replica imports it if need be.
    request_module: str


class GrpcService(msgspec.Struct, array_like=True, frozen=True):
    """One service: `package.Name` and its methods."""

    name: str
    methods: tuple[GrpcMethod, ...]


class GrpcSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The gRPC front door, as every proxy of an instance opens it."""

    host: str
    #: 0: whoever opens the port picks a free one.
    port: int
    request_timeout_s: float | None = None
    enable_reflection: bool = True
    max_message_bytes: int = 2**31 - 1
    #: Absolute paths; empty: no TLS.
    ssl_keyfile: str = ""
    ssl_certfile: str = ""
    #: Absolute path; clients must show a certificate that one of these has signed.
    ssl_ca_certs: str = ""
    services: tuple[GrpcService, ...] = ()
    #: Serialized `FileDescriptorProto`s for reflection, each after those that it imports.
    files: tuple[bytes, ...] = ()


def digest(setup: GrpcSetup | None) -> str:
    """Tell setups apart in a few characters, the port left aside; empty: no gRPC. Pure."""
    if setup is None:
        return ""
    data = to_json(msgspec.structs.replace(setup, port=0))
    return hashlib.sha256(data).hexdigest()[:16]
