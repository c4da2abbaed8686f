"""TLS of a front door: certificates from files, taken anew when the files change.

New connections get the new certificate and the new authorities; those that are open keep theirs,
as TLS has it. Every change makes a new context: one that is in use can be given another
certificate, but it never forgets an authority that it has trusted once, nor a session.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Protocol

from remora.config import HTTPOptions
from remora.errors import ConfigError
from remora.types import Seconds

_log = logging.getLogger("remora.tls")

#: How often the files are looked at. Certificates are renewed days before they expire, and a
#: look is a few `stat` calls: on a mounted secret or a network file system nothing else tells.
LOOK_EVERY_S: Seconds = 2.0


class Files(Protocol):
    """Options that name the files."""

    @property
    def ssl_certfile(self) -> str | None:
        """The certificate, with its chain."""

    @property
    def ssl_keyfile(self) -> str | None:
        """Its key."""

    @property
    def ssl_ca_certs(self) -> str | None:
        """The authorities that the other side's certificate must come from."""


def server_context(options: HTTPOptions, whose: str = "http_options") -> ssl.SSLContext | None:
    """Make the context that these options describe; None: they ask for no TLS.

    With `ssl_ca_certs` only clients with a certificate from one of those authorities get in.

    Args:
        options: name the files.
        whose: what the user calls these options.

    Raises:
        ConfigError: a file is missing, unreadable or not what it should be; says which.
    """
    if options.ssl_certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load(context, options, whose, options.ssl_keyfile_password or "")
    return context


def load(context: ssl.SSLContext, options: Files, whose: str, password: str = "") -> None:
    """Put the files' present content into a fresh context.

    Args:
        context: takes it.
        options: name the files.
        whose: what the user calls these options.
        password: of an encrypted key.

    Raises:
        ConfigError: a file is missing, unreadable or not what it should be; says which.
    """
    assert options.ssl_certfile is not None
    for field in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        path = getattr(options, field)
        if path is None:
            continue
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise _refused(whose, field, path, f"it cannot be read: {error.strerror}") from None
    # With a function OpenSSL never asks on the terminal.
    try:
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, lambda: password)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise _refused(
            whose,
            "ssl_keyfile",
            options.ssl_keyfile,
            f"certificate and key in PEM format that belong together, with the right "
            f"ssl_keyfile_password if the key has one ({_reason(error)}; ssl_certfile="
            f"{options.ssl_certfile!r})",
        ) from None
    if options.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(options.ssl_ca_certs)
        except (ssl.SSLError, OSError) as error:
            raise _refused(
                whose, "ssl_ca_certs", options.ssl_ca_certs, f"a PEM file ({_reason(error)})"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED


def _refused(whose: str, field: str, value: object, reason: str) -> ConfigError:
    return ConfigError(f"{whose}[{field!r}]", value, reason)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


class ReloadingContext:
    """Holds the context of a server that lives longer than its certificate.

    Whoever accepts connections asks for `context` anew for each one.
    """

    def __init__(self, options: HTTPOptions) -> None:
        """Read the files.

        Raises:
            ConfigError: they cannot be used.
        """
        self._options = options
        self._seen: tuple[tuple[int, int, int], ...] | None = self._stamps()
        self.context = server_context(options)

    async def watch(self) -> None:
        """Look at the files for ever."""
        while self.context is not None:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Take the files anew if they have changed and belong together.

        While a renewal writes one after the other they do not: the old certificate stays in
        use, and the next look tries again.
        """
        stamps = self._stamps()
        if stamps == self._seen or self.context is None:
            return
        try:
            self.context = server_context(self._options)
        except ConfigError as error:
            if self._seen is not None:
                _log.warning("The certificate has changed, and the old one stays: %s", error)
            self._seen = None
            return
        self._seen = stamps
        _log.info("New connections get the new certificate of %s", self._options.ssl_certfile)

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        return stamps_of(self._options)


def stamps_of(options: Files) -> tuple[tuple[int, int, int], ...]:
    """What changes when one of the files does."""
    stamps = []
    for path in (options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs):
        if path is None:
            continue
        try:
            found = Path(path).stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(stamps)
