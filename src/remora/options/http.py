"""The HTTP front door, and on which nodes it is."""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import Named, nearest, require_number, require_text, struct_of


class ProxyLocation(StrEnum):
    """On which nodes a proxy runs. On one machine the last two mean the same."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


def proxy_location(given: ProxyLocation | str | None) -> ProxyLocation:
    """Turn what a user passes as `proxy_location` into the enum.

    Raises:
        TypeError: neither text nor a `ProxyLocation`.
        ConfigError: no such location.
    """
    if given is None:
        return ProxyLocation.EveryNode
    if isinstance(given, ProxyLocation):
        return given
    if not isinstance(given, str):
        raise TypeError(
            f"proxy_location must be a str or ProxyLocation, not {type(given).__name__}"
        )
    if given == "NoServer":
        return ProxyLocation.Disabled
    names = [location.value for location in ProxyLocation]
    if given not in names:
        raise ConfigError(
            "proxy_location", given, f"one of {', '.join(names)}.{nearest(given, names)}"
        )
    return ProxyLocation(given)


_SSL_OPTIONS = ("ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs")


class _Http(Named):
    """Takes the old options that Ray Serve's users still write, where they say nothing."""

    def __call__(cls, *args: Any, **given: Any) -> Any:  # noqa: N805 - a metaclass
        """Make an instance.

        Raises:
            TypeError: a keyword does not exist.
            ConfigError: an old option that would say something.
        """
        return super().__call__(*args, **_without_neutral(given, depth=3))


class HTTPOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=_Http
):
    """The HTTP front door."""

    #: Address to listen on; None: no HTTP.
    host: str | None = "127.0.0.1"
    #: Port, 0..65535; 0: the kernel picks a free one.
    port: int = 8000
    root_path: str = ""
    #: URL that users reach the front door by, for what is printed; empty: its own.
    root_url: str = ""
    #: Seconds a request may take from end to end; None: no limit.
    request_timeout_s: float | None = None
    #: Seconds that an idle connection is kept.
    keep_alive_timeout_s: float = 90.0
    #: Proxy processes on the one listening socket, >= 1; None: one for every four cores, four at
    #: most.
    num_proxies: int | None = None
    #: Bytes of request head (request line and headers) that are accepted.
    max_head_bytes: int = 64 * 1024
    #: Bytes of request body that are accepted; None: no limit (bodies are streamed).
    max_body_bytes: int | None = None
    #: PEM files of the server's key and certificate (chain); both or none. None: plain HTTP.
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    #: Of an encrypted key.
    ssl_keyfile_password: str | None = None
    #: PEM file of the authorities that clients' certificates must come from; None: clients need
    #: no certificate.
    ssl_ca_certs: str | None = None
    #: Bytes of a WebSocket's message from a client, unpacked; a larger one ends it with 1009.
    websocket_max_message_bytes: int = 16 * 1024 * 1024
    #: Seconds between pings to the client of a WebSocket; None: no pings.
    websocket_ping_interval_s: float | None = 20.0
    #: Seconds in which something must come after a ping; None: none that is silent is cut off.
    websocket_ping_timeout_s: float | None = 20.0

    def __post_init__(self) -> None:
        require_text("host", self.host, "an address, or None for no HTTP")
        for name in ("root_path", "root_url"):
            text: object = getattr(self, name)
            if not isinstance(text, str):
                raise ConfigError(name, text, "must be text")
        if self.root_url and not self.root_url.startswith(("http://", "https://")):
            raise ConfigError("root_url", self.root_url, "begins with http:// or https://")
        require_number("port", self.port, low=0, high=65535, whole=True)
        require_number("request_timeout_s", self.request_timeout_s, above=0, or_none=True)
        require_number("keep_alive_timeout_s", self.keep_alive_timeout_s, low=0)
        require_number("num_proxies", self.num_proxies, low=1, whole=True, or_none=True)
        require_number("max_head_bytes", self.max_head_bytes, low=1, whole=True)
        require_number("max_body_bytes", self.max_body_bytes, low=0, whole=True, or_none=True)
        for name in ("websocket_ping_interval_s", "websocket_ping_timeout_s"):
            require_number(name, getattr(self, name), above=0, or_none=True)
        name = "websocket_max_message_bytes"
        require_number(name, self.websocket_max_message_bytes, low=1, whole=True)
        self._check_tls()

    def _check_tls(self) -> None:
        for name in _SSL_OPTIONS:
            require_text(name, getattr(self, name), "text, or None")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            missing = "ssl_keyfile" if self.ssl_keyfile is None else "ssl_certfile"
            raise ConfigError(missing, None, "TLS needs both ssl_keyfile and ssl_certfile")
        for name in ("ssl_keyfile_password", "ssl_ca_certs"):
            if getattr(self, name) is not None and self.ssl_certfile is None:
                shown = "…" if name.endswith("password") else self.ssl_ca_certs
                raise ConfigError(name, shown, "needs ssl_keyfile and ssl_certfile beside it")


def http_options(given: HTTPOptions | dict[str, Any] | None) -> HTTPOptions:
    """Turn what a user passes as `http_options` into the struct.

    Names that Ray Serve knows and Remora does not need are accepted with their neutral value.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    if isinstance(given, dict):
        given = _without_neutral(given, depth=4)
    return struct_of(HTTPOptions, "http_options", given)


def _without_neutral(given: dict[str, Any], depth: int) -> dict[str, Any]:
    """Leave out old options that say nothing; `depth` is how many calls below the user this is."""
    options = dict(given)
    if options.pop("middlewares", None):
        raise ConfigError(
            "http_options['middlewares']",
            given["middlewares"],
            "the front door takes no middleware; add it to your FastAPI or Starlette app",
        )
    if options.pop("num_cpus", 0):
        raise ConfigError("http_options['num_cpus']", given["num_cpus"], "must be 0")
    if options.pop("location", None) is not None:
        warnings.warn(
            "http_options['location'] is deprecated; pass proxy_location to start() instead",
            DeprecationWarning,
            stacklevel=depth,
        )
    return options


def with_absolute_paths(options: HTTPOptions) -> HTTPOptions:
    """The same for processes that work in another folder."""
    changed: dict[str, Any] = {}
    for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
        path = getattr(options, name)
        if path is not None:
            changed[name] = str(Path(path).expanduser().absolute())
    return msgspec.structs.replace(options, **changed) if changed else options
