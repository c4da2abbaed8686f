"""What routers count, as Prometheus reads it."""

from __future__ import annotations

from remora.observe.metrics import render
from remora.observe.routing_counts import RoutingCounts, RoutingRow, routing_families
from remora.types import DeploymentID


def test_each_router_has_its_numbers_under_its_labels() -> None:
    busy, calm = RoutingCounts(), RoutingCounts()
    busy.refused["queue_full"] = 3
    busy.retried["replica_died"] = 2
    busy.router_errors["choose_replicas: KeyError"] = 7
    text = render(
        routing_families(
            (
                RoutingRow(DeploymentID("B", 'an "app"'), 10, 4, busy),
                RoutingRow(DeploymentID("A", "app"), 1, 0, calm),
            )
        )
    )
    lines = text.splitlines()
    labels = 'application="an \\"app\\"",deployment="B"'
    assert f"serve_num_router_requests_total{{{labels}}} 10" in lines
    assert f"serve_deployment_queued_queries{{{labels}}} 4" in lines
    assert f'serve_num_refused_requests_total{{{labels},reason="queue_full"}} 3' in lines
    assert f'serve_num_retried_requests_total{{{labels},reason="replica_died"}} 2' in lines
    reason = 'reason="choose_replicas: KeyError"'
    assert f"serve_num_request_router_errors_total{{{labels},{reason}}} 7" in lines
    calm_ones = [line for line in lines if 'deployment="A"' in line and "reason" in line]
    assert len(calm_ones) == 5
    assert all(line.endswith(" 0") for line in calm_ones)


def test_two_routers_of_one_deployment_are_one_row() -> None:
    one, other = RoutingCounts(), RoutingCounts()
    one.retried["never_started"] = 1
    other.retried["never_started"] = 2
    shop = DeploymentID("A", "shop")
    text = render(routing_families((RoutingRow(shop, 1, 2, one), RoutingRow(shop, 3, 4, other))))
    labels = 'application="shop",deployment="A"'
    assert f"serve_num_router_requests_total{{{labels}}} 4\n" in text
    assert f"serve_deployment_queued_queries{{{labels}}} 6\n" in text
    assert f'serve_num_retried_requests_total{{{labels},reason="never_started"}} 3\n' in text


def test_without_routers_there_is_nothing() -> None:
    assert routing_families(()) == []
