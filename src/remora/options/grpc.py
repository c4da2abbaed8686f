"""The gRPC front door."""

from __future__ import annotations

from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import Named, require_flag, require_number, require_text, struct_of


class gRPCOptions(  # noqa: N801 - the name that Ray Serve's users know
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=Named
):
    """The gRPC front door. It is opened when any option differs from its default."""

    #: Port, 0..65535; 0: the kernel picks a free one.
    port: int = 9000
    #: Functions that generated code calls `add_…Servicer_to_server`, or their import paths.
    grpc_servicer_functions: list[Any] = []
    #: Seconds a request may take from end to end; None: no limit but the client's.
    request_timeout_s: float | None = None
    #: Tell clients which services there are.
    enable_reflection: bool = True
    #: Address to listen on; None: that of `http_options`.
    host: str | None = None
    #: Bytes of one message in either direction that are accepted.
    max_message_bytes: int = 2**31 - 1
    #: Files in PEM format. With key and certificate the port speaks TLS only.
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    #: Clients must show a certificate that one of these authorities has signed.
    ssl_ca_certs: str | None = None

    def __post_init__(self) -> None:
        def field(name: str) -> str:
            return f"grpc_options[{name!r}]"

        require_number(field("port"), self.port, low=0, high=65535, whole=True)
        require_number(field("request_timeout_s"), self.request_timeout_s, above=0, or_none=True)
        require_number(
            field("max_message_bytes"), self.max_message_bytes, low=1, high=2**31 - 1, whole=True
        )
        require_flag(field("enable_reflection"), self.enable_reflection)
        functions: object = self.grpc_servicer_functions  # whatever the caller really passed
        if not isinstance(functions, list) or not all(
            callable(each) or (isinstance(each, str) and each) for each in functions
        ):
            raise ConfigError(
                field("grpc_servicer_functions"), functions, "a list of functions or import paths"
            )
        for name in ("host", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
            allowed = "must be a str that is not empty, or None"
            require_text(field(name), getattr(self, name), allowed)
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError(
                field("ssl_keyfile"), self.ssl_keyfile, "needs ssl_certfile beside it, and it this"
            )
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ConfigError(
                field("ssl_ca_certs"), self.ssl_ca_certs, "needs ssl_certfile and ssl_keyfile"
            )


def grpc_options(given: gRPCOptions | dict[str, Any] | None) -> gRPCOptions:
    """Turn what a user passes as `grpc_options` into the struct.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    return struct_of(gRPCOptions, "grpc_options", given)
