"""What a replica counts of its requests, models and batches."""

from __future__ import annotations

import pytest

from remora.observe import replica_counts as module
from remora.observe.batches import BatchCounters
from remora.observe.metrics import render
from remora.observe.replica_counts import LoadCounts, ReplicaCounts, batch_families, model_families

REPLICA = ("shop", "Model", "shop/Model#1")
LABELS = 'application="shop",deployment="Model",replica="shop/Model#1"'


def test_requests_are_counted_by_route_and_by_what_became_of_them() -> None:
    counts = ReplicaCounts()
    for route in ("/shop", "/shop", "", "/shop"):
        counts.ended(route, 0.002)
    counts.failed("/shop", KeyError("x"))
    counts.cancelled("/shop")
    lines = render(counts.families(REPLICA, 2, 5)).splitlines()
    assert f'serve_deployment_request_counter_total{{{LABELS},route=""}} 1' in lines
    assert f'serve_deployment_request_counter_total{{{LABELS},route="/shop"}} 1' in lines
    kind = 'exception_type="KeyError"'
    assert f'serve_deployment_error_counter_total{{{LABELS},route="/shop",{kind}}} 1' in lines
    assert f'serve_deployment_cancelled_counter_total{{{LABELS},route="/shop"}} 1' in lines
    latency = f'serve_deployment_processing_latency_ms_bucket{{{LABELS},route="/shop"'
    assert f'{latency},le="1"}} 0' in lines
    assert f'{latency},le="2.5"}} 3' in lines
    assert f"serve_replica_processing_queries{{{LABELS}}} 2" in lines
    assert f"serve_replica_max_ongoing_requests{{{LABELS}}} 5" in lines


def test_the_number_of_good_requests_never_goes_back() -> None:
    counts = ReplicaCounts()
    counts.ended("", 0.001)
    good = [_good(counts)]
    counts.failed("", KeyError("x"))
    good.append(_good(counts))
    counts.ended("", 0.001)
    good.append(_good(counts))
    assert good == [1, 1, 1]


def _good(counts: ReplicaCounts) -> float:
    families = {family.name: family for family in counts.families(REPLICA, 0, 5)}
    return families["serve_deployment_request_counter"].rows[*REPLICA, ""][0]


def test_only_so_many_kinds_of_errors_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ERROR_KINDS", 3)
    counts = ReplicaCounts()
    for number in range(10):
        counts.failed("", type(f"Error{number}", (Exception,), {})())
    families = {family.name: family for family in counts.families(REPLICA, 0, 5)}
    rows = families["serve_deployment_error_counter"].rows
    assert len(rows) == 4
    assert rows[*REPLICA, "", "other"] == [7]


def test_models_are_counted_and_the_latest_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MODELS_NAMED", 2)
    one, other = LoadCounts(), LoadCounts()
    one.num_asked, other.num_asked = 3, 4
    one.loads.observe(15)
    other.loads.observe(700)
    other.unloads.observe(1)
    lines = render(model_families(REPLICA, (one, other), ["a", "b", "c"])).splitlines()
    of = "serve_multiplexed_"
    assert f"{of}get_model_requests_counter_total{{{LABELS}}} 7" in lines
    assert f"{of}models_load_counter_total{{{LABELS}}} 2" in lines
    assert f"{of}models_unload_counter_total{{{LABELS}}} 1" in lines
    assert f'{of}model_load_latency_ms_bucket{{{LABELS},le="20"}} 1' in lines
    assert f"{of}model_load_latency_ms_sum{{{LABELS}}} 715" in lines
    assert f"serve_num_multiplexed_models{{{LABELS}}} 3" in lines
    named = [line for line in lines if "registered_multiplexed_model_id{" in line]
    assert [line.partition('model_id="')[2][0] for line in named] == ["b", "c"]
    assert model_families(REPLICA, (), []) == []


def test_each_batched_function_has_its_rows() -> None:
    batches = BatchCounters()
    batches.started(size=8, max_size=10, wait_s=0.003)
    batches.ended(0.02)
    lines = render(batch_families(REPLICA, {"Model.predict": (batches, 4)})).splitlines()
    labels = f'{LABELS},function_name="Model.predict"'
    assert f"serve_batches_processed_total{{{labels}}} 1" in lines
    assert f"serve_batch_queue_length{{{labels}}} 4" in lines
    assert f"serve_batch_wait_time_ms_sum{{{labels}}} 3" in lines
    assert f"serve_batch_execution_time_ms_sum{{{labels}}} 20" in lines
    assert f'serve_actual_batch_size_bucket{{{labels},le="8"}} 1' in lines
    assert f'serve_batch_utilization_percent_bucket{{{labels},le="80"}} 1' in lines
