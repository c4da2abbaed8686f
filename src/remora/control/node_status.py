"""What a status report says of each node. Rules: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from remora.core.state import ControllerState
from remora.engine.base import SystemProcess
from remora.wire.control import NodeStatus


def nodes_of(
    state: ControllerState, processes: Collection[SystemProcess]
) -> tuple[NodeStatus, ...]:
    """Say what is on each node, by their ids. Pure."""
    agents = {
        each.node_id: each.pid
        for each in processes
        if each.name == "supervisor" or each.name.startswith("agent")
    }
    troubles = {each.node_id: each.trouble for each in processes if each.trouble}
    proxies = Counter(each.node_id for each in processes if each.name.startswith("proxy"))
    replicas = Counter(replica.node_id for _, _, replica in state.replicas())
    return tuple(
        NodeStatus(
            node_id=node_id,
            host=node.host,
            role=node.role,
            resources=node.resources,
            draining=node.draining,
            refusal=node.refusal,
            trouble=troubles.get(node_id, ""),
            joining=node.is_joining,
            closing=node.closing and node_id in agents,
            agent_pid=agents.get(node_id, 0),
            num_proxies=proxies[node_id],
            num_replicas=replicas[node_id],
        )
        for node_id, node in sorted(state.nodes.items())
    )
