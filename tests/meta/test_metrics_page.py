"""The page about metrics names each metric that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from remora.observe.batches import BatchCounters
from remora.observe.counters import RequestCounters
from remora.observe.replica_counts import LoadCounts, ReplicaCounts, batch_families, model_families
from remora.observe.routing_counts import RoutingCounts, RoutingRow, routing_families
from remora.observe.status_metrics import status_families
from remora.types import DeploymentID

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
REPLICA = ("app", "Model", "app/Model#1")
#: Made where they are told.
OTHERS = {
    "serve_autoscaling_policy_errors",
    "serve_metrics_complete",
    "serve_metrics_missing_processes",
    "serve_num_ongoing_grpc_requests",
}


def made() -> set[str]:
    families = [
        *RequestCounters("http").families(),
        *RequestCounters("grpc").families(),
        *ReplicaCounts().families(REPLICA, 0, 1),
        *model_families(REPLICA, [LoadCounts()], []),
        *batch_families(REPLICA, {"f": (BatchCounters(), 0)}),
        *routing_families([RoutingRow(DeploymentID("Model"), 0, 0, RoutingCounts())]),
        *status_families({}),
    ]
    return {family.name for family in families} | OTHERS


def test_each_metric_is_on_the_page() -> None:
    assert [name for name in sorted(made()) if f"`{name}`" not in PAGE] == []


def test_the_page_names_no_other() -> None:
    named = {
        re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"serve_\w+", PAGE)
    }
    assert named - made() == set()


def test_others_are_made_somewhere() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert [name for name in OTHERS if f'"{name}"' not in sources] == []
