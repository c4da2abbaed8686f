"""Which node this process is on, and the token that opens connections to other nodes.

An engine with one node has neither. One with several tells each process when it starts it; a
script reads them from the state folder, where the node's own processes keep them.

Rules: the only state of a process in this package. It is set before the first connection.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property

import msgspec

from remora.errors import InstanceError
from remora.home import Home
from remora.options.node import PLAIN, NodeOptions
from remora.transport.node_tls import NodeTls


@dataclass(frozen=True)
class Membership:
    """A process's place among the nodes.

    Attributes:
        node_id: of the node that it runs on; empty: there is one node.
        token: proves to other nodes that a connection comes from this instance.
        options: of connections to other nodes.
        zone: that the node is in; empty: unknown.
    """

    node_id: str = ""
    token: str = ""
    options: NodeOptions = PLAIN
    zone: str = ""

    @cached_property
    def tls(self) -> NodeTls | None:
        """For connections to other nodes; None: they are plain.

        Raises:
            ConfigError: its files cannot be used.
        """
        return NodeTls(self.options) if self.options else None

    def write(self, home: Home) -> None:
        """Leave it in a state folder, for programs of this user on this node."""
        path = home.membership_file
        # Whoever reads meanwhile finds all of the old one or all of the new one.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(msgspec.to_builtins(self)), encoding="utf-8")
        draft.replace(path)


_mine = Membership()


def mine() -> Membership:
    """The membership of this process."""
    return _mine


def join(membership: Membership) -> None:
    """Say where this process is."""
    global _mine
    _mine = membership


def join_by_folder(home: Home) -> None:
    """Take over what the state folder says; a folder of one node says nothing.

    Raises:
        InstanceError: the file is there and cannot be read.
    """
    if (found := _read(home)) is not None:
        join(found)


def _read(home: Home) -> Membership | None:
    path = home.membership_file
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        options = msgspec.convert(found.get("options", {}), NodeOptions)
        zone = str(found.get("zone", ""))
        return Membership(str(found["node_id"]), str(found["token"]), options, zone)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise InstanceError(
            f"Cannot read {path}, which opens connections to other nodes: {error!r}. Shut the "
            "instance down and start it again."
        ) from None
