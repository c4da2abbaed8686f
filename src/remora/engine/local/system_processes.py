"""The processes that an instance always has: controller and proxies.

Rules: pure; when a process is started again is decided here, starting it is the supervisor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remora.engine.boot import InstanceOptions
from remora.engine.doors import default_num_proxies
from remora.engine.local.processes import (
    Process,
    ProcessTable,
    crashes_in_row,
    is_healthy,
    restart_delay_s,
)
from remora.engine.local.protocol import Message
from remora.home import Home
from remora.types import LOCAL_NODE, is_replica

CONTROLLER = "controller"
ADMIN = "admin"
_PROXY = "proxy-"


@dataclass
class PermanentProcess:
    """A process that is started again whenever it ends.

    Attributes:
        request: the fork message, the same for every start.
        crashes: ends in a row.
        restarts: starts after the first one.
        restart_at: when it is to be started; None: it is there.
    """

    request: Message
    crashes: int = 0
    restarts: int = 0
    restart_at: float | None = None

    def ended(self, process: Process, now: float) -> float:
        """Plan the next start; returns the seconds until then."""
        self.crashes = crashes_in_row(self.crashes, process.up_since, now)
        self.restarts += 1
        delay_s = restart_delay_s(self.crashes)
        self.restart_at = now + delay_s
        return delay_s


class PermanentProcesses:
    """All of an instance."""

    def __init__(self) -> None:
        self._all: dict[str, PermanentProcess] = {}

    def add(self, request: Message) -> None:
        """One more, whose first start is under way."""
        self._all[str(request["id"])] = PermanentProcess(request)

    def due_at(self) -> float | None:
        """When the next is to be started; None: all are there."""
        times = [each.restart_at for each in self._all.values() if each.restart_at is not None]
        return min(times, default=None)

    def take_due(self, now: float) -> list[Message]:
        """The fork messages of those that are to be started now."""
        due = [
            one
            for one in self._all.values()
            if one.restart_at is not None and one.restart_at <= now
        ]
        for one in due:
            one.restart_at = None
        return [one.request for one in due]

    def ended(self, process: Process, now: float) -> float:
        """Plan the next start of one; returns the seconds until then."""
        return self._all[process.process_id].ended(process, now)

    def told(self, table: ProcessTable, now: float) -> list[Message]:
        """What `status` says of them."""
        running = {name: table.get(name) for name in self._all}
        return [
            {
                "name": name,
                "pid": process.pid if process else 0,
                "restarts": self._all[name].restarts,
                "crashes": 0 if is_healthy(process, now) else self._all[name].crashes,
            }
            for name, process in running.items()
        ]


def admin_request(
    home: Home, admin: Mapping[str, Any], sockets: Iterable[str], options: Mapping[str, Any]
) -> Message:
    """Describe the process of the REST API, which is started when somebody first asks. Pure.

    Args:
        home: state folder.
        admin: the user's `AdminOptions` as a dict.
        sockets: names of those that it answers on.
        options: those of the front doors, for people.
    """
    shown = {**options, "node_id": LOCAL_NODE}
    return {
        "op": "fork",
        "id": ADMIN,
        "entrypoint": "remora.rest.main:main",
        "title": "remora: admin",
        "sockets": list(sockets),
        "address": f"unix:{home.admin_socket}",
        "args": {"host": admin.get("host"), "options": shown},
    }


def is_proxy(process_id: str) -> bool:
    """Tell a proxy by its id. Pure."""
    return process_id.startswith(_PROXY) and not is_replica(process_id)


def system_requests(
    options: InstanceOptions,
    grpc: Mapping[str, Any] | None = None,
    *,
    http_url: str,
    grpc_address: str = "",
    admin_url: str = "",
    cores: int = 1,
) -> list[Message]:
    """Describe the controller and the proxies. Pure.

    The controller comes first: the first application waits for it before it needs a proxy.

    Args:
        options: of the instance.
        grpc: the setup for gRPC as JSON knows it; None: no gRPC.
        http_url: of the front door; empty without HTTP.
        grpc_address: where gRPC is served.
        admin_url: of the REST API; empty: it has only its Unix socket.
        cores: of this machine.
    """
    controller = {
        "op": "fork",
        "id": CONTROLLER,
        "entrypoint": options.controller,
        "title": "remora: controller",
        "sockets": ["control"],
        "address": f"unix:{Home(Path(options.home)).controller_socket}",
        "args": {
            "engine": "local",
            "http_url": http_url,
            "bound": options.owner_fd is not None,
            "grpc_address": grpc_address,
            "machine": dict(options.machine),
            "admin_url": admin_url,
            "logging": options.logging,
            "tracing": options.tracing,
        },
    }
    if not http_url and grpc is None:
        return [controller]
    proxy_args: dict[str, Any] = {
        "http": dict(options.http),
        "http_url": http_url,
        "grpc": grpc,
        "logging": options.logging,
        "tracing": options.tracing,
        "num_proxies": int(options.http.get("num_proxies") or default_num_proxies(cores)),
    }
    proxies = [
        {
            "op": "fork",
            "id": f"{_PROXY}{index + 1}",
            "entrypoint": options.proxy,
            "title": "remora: proxy",
            "sockets": ["http"] if http_url else [],
            "address": http_url or grpc_address,
            "args": {**proxy_args, "name": f"{_PROXY}{index + 1}", "index": index},
        }
        for index in range(proxy_args["num_proxies"])
    ]
    return [controller, *proxies]
