"""TLS of the connections between the nodes of a cluster, as a user asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import require_text, struct_of

_FIELDS = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Connections between nodes; all three files, or none: plain TCP.

    The files are read on each node from the same paths. The certificate of a node names its IP
    address, and serves for both ends of a connection.
    """

    #: PEM file of the node's certificate, with its chain.
    ssl_certfile: str | None = None
    #: PEM file of its key.
    ssl_keyfile: str | None = None
    #: PEM file of the authorities that the certificates of all nodes come from.
    ssl_ca_certs: str | None = None

    def __post_init__(self) -> None:
        for name in _FIELDS:
            allowed = "the path of a file, or None"
            require_text(f"node_options[{name!r}]", getattr(self, name), allowed)
        missing = [name for name in _FIELDS if getattr(self, name) is None]
        if missing and len(missing) < len(_FIELDS):
            raise ConfigError(
                f"node_options[{missing[0]!r}]",
                None,
                "TLS between nodes needs all of ssl_certfile, ssl_keyfile and ssl_ca_certs",
            )

    def __bool__(self) -> bool:
        return self.ssl_certfile is not None

    def absolute(self) -> NodeOptions:
        """The same for processes that work in another folder."""
        if not self:
            return self
        paths = {name: str(Path(getattr(self, name)).expanduser().absolute()) for name in _FIELDS}
        return NodeOptions(**paths)


#: Plain TCP.
PLAIN = NodeOptions()


def node_options(given: NodeOptions | dict[str, Any] | None) -> NodeOptions:
    """Turn what a user passes as `node_options` into the struct.

    Raises:
        ConfigError: an unknown name, or a value that cannot be right.
    """
    return struct_of(NodeOptions, "node_options", given)
