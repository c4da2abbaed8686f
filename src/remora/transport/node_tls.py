"""TLS between the nodes of a cluster: who may connect, and whether a node's files will do.

Both sides of a connection show the certificate of their node. Whoever connects checks that the other
side's names the address that was asked for; whoever accepts, that it comes from the authorities.
"""

from __future__ import annotations

import logging
import ssl
import time

from remora.errors import ConfigError
from remora.options.node import NodeOptions
from remora.transport.tls import LOOK_EVERY_S, load, stamps_of
from remora.wire.foreign import NOT_TLS

_log = logging.getLogger("remora.tls")
_WHOSE = "node_options"
#: Enough for each side to say what it has to.
_ROUNDS = 4


class NodeTls:
    """The contexts of a process's connections to other nodes.

    New connections get renewed files; those that are open keep what they began with.
    """

    def __init__(self, options: NodeOptions) -> None:
        """Read the files.

        Raises:
            ConfigError: they cannot be used; says which and why.
        """
        self._options = options
        self._stamps = stamps_of(options)
        self._looked = time.monotonic()
        self._server, self._client = _contexts(options)

    def server(self) -> ssl.SSLContext:
        """For the side that accepts."""
        self._look()
        return self._server

    def client(self) -> ssl.SSLContext:
        """For the side that connects."""
        self._look()
        return self._client

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        stamps = stamps_of(self._options)
        if stamps == self._stamps:
            return
        try:
            self._server, self._client = _contexts(self._options)
        except ConfigError as error:
            # While a renewal writes one file after the other they do not belong together.
            _log.warning("The certificate has changed, and the old one stays: %s", error)
            return
        self._stamps = stamps
        _log.info("New connections get the new certificate of %s", self._options.ssl_certfile)


def _contexts(options: NodeOptions) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Asks for the name of whoever is connected to, and for a certificate.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        # All peers are Remora itself: nobody needs an older one.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        load(context, options, _WHOSE)
    # Connections stay for as long as their processes: nothing is ever resumed.
    server.num_tickets = 0
    return server, client


def check_files(options: NodeOptions, host: str) -> None:
    """See that other nodes will take this node's certificate, by asking as they do.

    Args:
        options: name the files.
        host: IP address of this node.

    Raises:
        ConfigError: they will not; says why.
    """
    server_context, client_context = _contexts(options)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(_ROUNDS):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        raise ConfigError(
            f"{_WHOSE}['ssl_certfile']",
            options.ssl_certfile,
            f"other nodes would not take it as the certificate of this node ({host}): {reason}. It "
            f"must be valid now, name {host} as an IP address, come from an authority in "
            f"{options.ssl_ca_certs}, and be made for servers and clients alike",
        ) from None


def explain(error: ssl.SSLError) -> str:
    """Say in words why a connection was not, or is no longer, secure. Pure."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not taken: {error.verify_message}"
    reason = error.reason or str(error)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate: nodes and programs need the node_options of the instance"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL"):
        return NOT_TLS
    if "ALERT" in reason:
        text = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"it does not take our certificate: {text}. Its log says why"
    return f"TLS failed: {reason.replace('_', ' ').lower()}"
