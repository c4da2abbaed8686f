from __future__ import annotations

import msgspec
import pytest
from rich.console import Console

from remora.cli.errors import CommandError
from remora.cli.report import address, nodes_text, places_text, render, select, states_text
from remora.types import LOCAL_NODE, NodeID
from remora.wire.control import (
    ApplicationStatus,
    DeploymentStatus,
    InstanceStatus,
    NodeStatus,
    ProcessView,
    ReplicaStatus,
)


def deployment(name: str, status: str = "HEALTHY", message: str = "") -> DeploymentStatus:
    return DeploymentStatus(
        name=name,
        status=status,
        status_trigger="CONFIG_UPDATE_COMPLETED",
        message=message,
        target_num_replicas=2,
        replica_states={"RUNNING": 1, "STARTING": 1, "DRAINING": 0},
        replicas=(
            ReplicaStatus(replica_id=f"default/{name}#a", state="RUNNING", pid=4001),
            ReplicaStatus(replica_id=f"default/{name}#b", state="PENDING"),
        ),
    )


def instance(*names: str, message: str = "", restarts: int = 0) -> InstanceStatus:
    return InstanceStatus(
        home="/somewhere",
        http_url="http://127.0.0.1:8000",
        controller_pid=2,
        supervisor_pid=1,
        proxies=(ProcessView(name="proxy", pid=3, status="HEALTHY", restarts=restarts),),
        applications={
            name: ApplicationStatus(
                name=name,
                status="RUNNING",
                message=message,
                route_prefix=f"/{name}",
                last_deployed_time_s=0.0,
                deployments={"Model": deployment("Model")},
            )
            for name in names
        },
    )


def drawn(status: InstanceStatus) -> str:
    console = Console(width=120, file=None, record=True, quiet=False)
    with console.capture() as capture:
        console.print(render(status))
    return capture.get()


def test_nodes_that_drain_are_named() -> None:
    status = instance("chat")
    assert "drain" not in drawn(status)
    status = msgspec.structs.replace(status, draining=(NodeID("abcdef0123456789"),))
    assert "nodes that drain, and are about to be taken away: abcdef012345\n" in drawn(status)


def test_processes_that_do_not_stay_are_named() -> None:
    status = msgspec.structs.replace(instance("chat"), troubles=("proxy-1 has ended 5 times",))
    assert "\nproxy-1 has ended 5 times\n" in drawn(status)


def test_nodes_are_shown_with_what_is_on_them_where_there_may_be_several() -> None:
    only = NodeStatus(node_id=LOCAL_NODE, resources={"CPU": 2.0}, agent_pid=1, num_proxies=1)
    assert "offers" not in drawn(msgspec.structs.replace(instance("chat"), nodes=(only,)))
    nodes = (
        NodeStatus(
            node_id=NodeID("a" * 56),
            host="10.0.0.1",
            role="head",
            resources={"CPU": 4.0, "GPU": 0.0, "memory": 2.0**31},
            agent_pid=41,
            num_proxies=2,
            num_replicas=3,
        ),
        NodeStatus(node_id=NodeID("b" * 56), host="10.0.0.2", closing=True, agent_pid=42),
        NodeStatus(node_id=NodeID("c" * 56), host="10.0.0.3", draining=True, closing=True),
        NodeStatus(node_id=NodeID("d" * 56), host="10.0.0.4", refusal="another version"),
        NodeStatus(node_id=NodeID("e" * 56), host="10.0.0.5", refusal="it starts", joining=True),
        NodeStatus(node_id=NodeID("f" * 56), host="10.0.0.6", trouble="has no front door: why"),
    )
    status = msgspec.structs.replace(instance("chat"), nodes=nodes)
    lines = [" ".join(line.split()) for line in drawn(status).splitlines()]
    assert "aaaaaaaaaaaa 10.0.0.1 4 CPU, 2 GiB memory 3 41 2 head" in lines
    assert "bbbbbbbbbbbb 10.0.0.2 0 42 - no replica: agent and proxies leave soon" in lines
    assert "cccccccccccc 10.0.0.3 0 - - drains, and is about to be taken away" in lines
    assert "dddddddddddd 10.0.0.4 0 - - takes no processes: another version" in lines
    assert "ffffffffffff 10.0.0.6 0 - - has no front door: why" in lines
    assert nodes_text(status).splitlines() == [
        "Node dddddddddddd takes no processes: another version.",
        "Node eeeeeeeeeeee takes no processes yet: it starts.",
        "Node ffffffffffff has no front door: why.",
    ]


def test_places_of_replicas_are_shown_where_there_are_several_nodes() -> None:
    nodes = tuple(NodeStatus(node_id=NodeID(name * 56), host="10.0.0.1") for name in "ab")
    status = msgspec.structs.replace(instance("chat"), nodes=nodes)
    replicas = tuple(
        ReplicaStatus(replica_id=f"chat/Model#{number}", state="RUNNING", node_id=node.node_id)
        for number, node in enumerate((nodes[1], nodes[0], nodes[1]))
    )
    chat = status.applications["chat"]
    chat.deployments["Model"] = msgspec.structs.replace(
        chat.deployments["Model"], replicas=replicas
    )
    assert places_text(chat.deployments["Model"]) == "bbbbbbbbbbbb (2), aaaaaaaaaaaa"
    assert "bbbbbbbbbbbb (2)," in drawn(status)
    assert "bbbbbbbbbbbb" not in drawn(msgspec.structs.replace(status, nodes=()))


def test_selects_one_application() -> None:
    status = instance("chat", "search")
    assert list(select(status, "chat").applications) == ["chat"]
    assert select(status, None) is status


def test_an_unknown_application_is_an_error_that_names_the_known() -> None:
    with pytest.raises(CommandError) as caught:
        select(instance("chat", "search"), "chatt")
    assert "deployed: chat, search" in caught.value.message
    assert "Did you mean 'chat'?" in caught.value.message


def test_without_applications_says_so() -> None:
    with pytest.raises(CommandError, match="none is deployed"):
        select(instance(), "chat")
    assert "No application is deployed" in drawn(instance())


def test_states_name_only_what_there_is() -> None:
    assert states_text(deployment("Model")) == "1/2 running, 1 starting"


def test_shows_applications_deployments_processes_and_pids() -> None:
    text = drawn(instance("chat", restarts=2))
    for part in (
        "http://127.0.0.1:8000",
        "/somewhere",
        "supervisor 1, controller 2, proxy 3 (2 restarts)",
        "chat",
        "/chat",
        "Model",
        "1/2 running, 1 starting",
        "4001",
    ):
        assert part in text


def test_messages_come_below_the_table_as_they_are() -> None:
    text = drawn(instance("chat", message="Traceback [bold]not markup[/bold]"))
    assert "Traceback [bold]not markup[/bold]" in text


def test_an_application_shows_its_url() -> None:
    text = drawn(instance("chat"))
    assert "http://127.0.0.1:8000/chat" in text


@pytest.mark.parametrize(
    ("http_url", "route_prefix", "found"),
    [
        ("http://h:1", "/", "http://h:1/"),
        ("http://h:1/", "/a", "http://h:1/a"),
        ("http://h:1", None, ""),
        ("", "/a", ""),
    ],
)
def test_an_address_is_url_and_route(http_url: str, route_prefix: str | None, found: str) -> None:
    assert address(http_url, route_prefix) == found
