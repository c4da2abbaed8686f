"""The certificate of the gRPC port, from files that may be renewed while it is open."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc

from remora.config import HTTPOptions
from remora.errors import ConfigError
from remora.transport.tls import server_context, stamps_of
from remora.wire.grpc import GrpcSetup

_log = logging.getLogger("remora.tls")


class Certificate:
    """Reads the files, again whenever they have changed.

    Concurrency: after the start `_renewed` is called by threads of gRPC's library, one for each new
    connection. Two that see the same change both read the files, which does no harm.
    """

    def __init__(self, setup: GrpcSetup) -> None:
        self._files = HTTPOptions(
            ssl_keyfile=setup.ssl_keyfile,
            ssl_certfile=setup.ssl_certfile,
            ssl_ca_certs=setup.ssl_ca_certs or None,
        )
        self._seen = stamps_of(self._files)

    def credentials(self) -> Any:
        """What gRPC's server wants to have.

        Raises:
            OSError: a file cannot be read.
        """
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._renewed,
            require_client_authentication=self._files.ssl_ca_certs is not None,
        )

    def _renewed(self) -> Any:
        """What a new connection gets; None: the same as the one before."""
        stamps = stamps_of(self._files)
        if stamps == self._seen:
            return None
        try:
            # While a renewal writes one file after the other, they do not belong together.
            server_context(self._files, "grpc_options")
            fresh = self._read()
        except (ConfigError, OSError) as error:
            _log.warning("The certificate has changed, and the old one stays: %s", error)
            return None
        if stamps_of(self._files) != stamps:
            # What was read is not all what was checked. The next connection looks again.
            return None
        self._seen = stamps
        _log.info("New connections get the new certificate of %s", self._files.ssl_certfile)
        return fresh

    def _read(self) -> Any:
        files = self._files
        assert files.ssl_keyfile is not None
        assert files.ssl_certfile is not None
        authorities = files.ssl_ca_certs
        return grpc.ssl_server_certificate_configuration(
            [(Path(files.ssl_keyfile).read_bytes(), Path(files.ssl_certfile).read_bytes())],
            root_certificates=None if authorities is None else Path(authorities).read_bytes(),
        )
