"""What `remora status` shows, laid out. Rules: pure functions from a status to text and tables."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from remora.cli.errors import CommandError
from remora.config import nearest
from remora.core.shortage import told
from remora.core.status_text import own_message
from remora.wire.control import (
    ApplicationStatus,
    DeploymentStatus,
    InstanceStatus,
    NodeStatus,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_COLOURS = {
    "RUNNING": "green",
    "HEALTHY": "green",
    "DEPLOYING": "cyan",
    "UPDATING": "cyan",
    "UPSCALING": "cyan",
    "DOWNSCALING": "cyan",
    "DELETING": "yellow",
}


def select(status: InstanceStatus, name: str | None) -> InstanceStatus:
    """Keep one application only, or all with None. Pure.

    Raises:
        CommandError: there is no application of that name.
    """
    if name is None:
        return status
    if name not in status.applications:
        known = ", ".join(sorted(status.applications)) or "none is deployed"
        raise CommandError(
            f"There is no application {name!r} (deployed: {known})."
            f"{nearest(name, status.applications)}"
        )
    return msgspec.structs.replace(status, applications={name: status.applications[name]})


def address(http_url: str, route_prefix: str | None) -> str:
    """Return where an application is served; empty: nowhere. Pure."""
    return "" if not http_url or route_prefix is None else http_url.rstrip("/") + route_prefix


def states_text(deployment: DeploymentStatus) -> str:
    """Say how many replicas are in which state. Pure."""
    running = deployment.replica_states.get("RUNNING", 0)
    others = [
        f"{count} {state.lower()}"
        for state, count in sorted(deployment.replica_states.items())
        if state != "RUNNING" and count
    ]
    return ", ".join([f"{running}/{deployment.target_num_replicas} running", *others])


def render(status: InstanceStatus) -> RenderableType:
    """Lay the status out as a table. Pure."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    processes = ", ".join(
        [f"supervisor {status.supervisor_pid}", f"controller {status.controller_pid}"]
        + [_process_text(p.name, p.pid, p.status, p.restarts) for p in status.proxies]
    )
    head = Text.assemble(
        ("Remora ", "bold"),
        status.http_url or "without HTTP",
        f", gRPC {status.grpc_address}" if status.grpc_address else "",
        f", REST {status.admin_url}" if status.admin_url else "",
        ("\nfolder ", "dim"),
        status.home,
        ("\npids   ", "dim"),
        processes,
    )
    if status.draining:
        names = ", ".join(node_id[:12] for node_id in status.draining)
        head.append(f"\nnodes that drain, and are about to be taken away: {names}", "yellow")
    for trouble in status.troubles:
        head.append(f"\n{trouble}", "red")
    parts: list[RenderableType] = [head]
    # Of the only one there is nothing to tell that is not said already.
    if any(node.host for node in status.nodes):
        parts += [Text(), _nodes(status.nodes)]
    if not status.applications:
        return Group(*parts, Text("\nNo application is deployed."))
    table = Table(
        show_edge=False, pad_edge=False, box=None, header_style="dim", padding=(0, 2, 0, 0)
    )
    places = len(status.nodes) > 1
    titles = ("application", "url", "deployment", "status", "replicas", "pids")
    for title in (*titles, "nodes") if places else titles:
        table.add_column(title, overflow="fold")
    notes: list[Text] = []
    for application in status.applications.values():
        _add_application(table, application, status.http_url, places=places)
        notes += _notes(application)
    return Group(*parts, Text(), table, *notes)


def _nodes(nodes: Iterable[NodeStatus]) -> Table:
    """Lay out what is on each node."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        show_edge=False, pad_edge=False, box=None, header_style="dim", padding=(0, 2, 0, 0)
    )
    for title in ("node", "address", "offers", "replicas", "agent", "proxies", ""):
        table.add_column(title, overflow="fold")
    for node in nodes:
        offers = ", ".join(
            f"{told(name, amount)} {name}"
            for name, amount in sorted(node.resources.items())
            if amount
        )
        table.add_row(
            node.node_id[:12],
            node.host,
            Text(offers),
            str(node.num_replicas),
            str(node.agent_pid or "-"),
            str(node.num_proxies or "-"),
            Text(_remark(node), style=_remark_style(node)),
        )
    return table


def nodes_text(status: InstanceStatus) -> str:
    """Say of each node what it lacks, a line each; empty: nothing. Pure."""
    lines = [
        f"Node {node.node_id[:12]} takes no processes yet: {node.refusal}."
        if node.joining
        else f"Node {node.node_id[:12]} takes no processes: {node.refusal}."
        for node in status.nodes
        if node.refusal
    ]
    lines += [f"Node {node.node_id[:12]} {node.trouble}." for node in status.nodes if node.trouble]
    return "\n".join(lines)


def _remark(node: NodeStatus) -> str:
    """Say what is special about a node; empty: nothing."""
    remarks = [node.role] if node.role else []
    if node.refusal:
        remarks.append(f"takes no processes: {node.refusal}")
    if node.trouble:
        remarks.append(node.trouble)
    if node.draining:
        remarks.append("drains, and is about to be taken away")
    elif node.closing:
        remarks.append("no replica: agent and proxies leave soon")
    return "; ".join(remarks)


def _remark_style(node: NodeStatus) -> str:
    if node.trouble or (node.refusal and not node.joining):
        return "red"
    return "yellow" if node.draining or node.closing or node.joining else "dim"


def _process_text(name: str, pid: int, state: str, restarts: int) -> str:
    text = f"{name} {pid}"
    if state != "HEALTHY":
        text += f" {state.lower()}"
    return f"{text} ({restarts} restarts)" if restarts else text


def places_text(deployment: DeploymentStatus) -> str:
    """Say on which nodes how many replicas are, all that have not ended; the most first. Pure."""
    counts = Counter(replica.node_id[:12] for replica in deployment.replicas)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(node if count == 1 else f"{node} ({count})" for node, count in ordered)


def _add_application(
    table: Table, application: ApplicationStatus, http_url: str, *, places: bool
) -> None:
    from rich.text import Text

    # Texts, not strings: a name in square brackets is no markup.
    url = Text(address(http_url, application.route_prefix) or application.route_prefix or "-")
    state = Text(application.status, style=_COLOURS.get(application.status, "red"))
    table.add_row(Text(application.name, style="bold"), url, "", state)
    for deployment in application.deployments.values():
        pids = [str(r.pid) for r in deployment.replicas if r.pid is not None]
        table.add_row(
            "",
            "",
            Text(deployment.name),
            Text(deployment.status, style=_COLOURS.get(deployment.status, "red")),
            states_text(deployment),
            " ".join(pids),
            *([places_text(deployment)] if places else []),
        )


def _notes(application: ApplicationStatus) -> list[Text]:
    from rich.text import Text

    messages = [(application.name, own_message(application))]
    messages += [
        (f"{application.name}/{d.name}", d.message) for d in application.deployments.values()
    ]
    told: list[Text] = []
    for name, message in messages:
        if message.strip():
            told.append(Text.assemble(("\n" + name + ": ", "bold"), message.strip()))
    return told
