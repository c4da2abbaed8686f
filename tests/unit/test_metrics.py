"""Metrics of the user's code: what may be declared and counted, and how much of it is kept."""

from __future__ import annotations

import logging
import math
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

import remora
from remora import metrics
from remora.context import ReplicaContext, ReplicaID, set_replica_context
from remora.metrics import Counter, Gauge, Histogram
from remora.observe import user_metrics
from remora.observe.counters import OTHER
from remora.observe.metrics import merged, render
from remora.observe.user_metrics import UserMetrics
from remora.request_context import RequestContext, current
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.metrics import MetricsReport

Rows = dict[tuple[str, ...], list[float]]


@pytest.fixture
def replica() -> Iterator[ReplicaContext]:
    context = ReplicaContext(ReplicaID("a/D#1"), DeploymentID("D", "a"))
    set_replica_context(context)
    yield context
    set_replica_context(None)


def rows(context: ReplicaContext, name: str) -> Rows:
    for family in context.user_metrics.families((), ()):
        if family.name == name:
            return family.rows
    return {}


def test_the_module_is_where_users_look_for_it() -> None:
    assert remora.metrics is metrics
    assert metrics.__all__ == ["Counter", "Gauge", "Histogram"]


def test_each_kind_counts_in_its_way(replica: ReplicaContext) -> None:
    counter = Counter("sold", description="Fish.", tag_keys=("kind",))
    counter.inc(tags={"kind": "eel"})
    counter.inc(2, {"kind": "eel"})
    counter.inc(np.float32(0.5), tags={"kind": "ray"})  # type: ignore[arg-type]
    assert rows(replica, "sold") == {("eel",): [3.0], ("ray",): [0.5]}
    gauge = Gauge("depth")
    gauge.set(3)
    gauge.set(-2.5)
    gauge.set(None)
    assert rows(replica, "depth") == {(): [-2.5]}
    histogram = Histogram("weight", boundaries=[10, 1])
    for value in (0.5, 1, 1.5, 100):
        histogram.observe(value)
    histogram.observe(math.nan)
    assert rows(replica, "weight") == {(): [2, 1, 1, 103.0]}
    assert histogram.info["boundaries"] == [10, 1]


def test_default_tags_give_way_to_those_that_are_given(replica: ReplicaContext) -> None:
    counter = Counter("n", tag_keys=("a", "b"))
    assert counter.set_default_tags({"a": "1"}) is counter
    counter.inc(tags={"b": "2"})
    counter.inc(tags={"a": "3", "b": "2"})
    counter.set_default_tags({"a": "x", "b": "y"})
    counter.inc()
    assert set(rows(replica, "n")) == {("1", "2"), ("3", "2"), ("x", "y")}
    assert counter.info == {
        "name": "n",
        "description": "",
        "tag_keys": ("a", "b"),
        "default_tags": {"a": "x", "b": "y"},
    }


def test_the_route_is_that_of_the_request(replica: ReplicaContext) -> None:
    counter = Counter("n", tag_keys=("route", "a"))
    counter.inc(tags={"a": "1"})
    token = current.set(RequestContext(route="/shop"))
    try:
        counter.inc(tags={"a": "1"})
        counter.inc(tags={"a": "1", "route": "/own"})
    finally:
        current.reset(token)
    assert set(rows(replica, "n")) == {("", "1"), ("/shop", "1"), ("/own", "1")}


@pytest.mark.parametrize(
    ("declare", "kind", "said"),
    [
        (lambda: Counter(""), ValueError, "name that is not empty"),
        (lambda: Counter(3), TypeError, "must be str"),  # type: ignore[arg-type]
        (lambda: Counter("n", tag_keys=["a"]), TypeError, "must be a tuple"),  # type: ignore[arg-type]
        (lambda: Counter("n", tag_keys="a"), TypeError, "must be a tuple"),  # type: ignore[arg-type]
        (lambda: Counter("n", tag_keys=(1,)), TypeError, "must be texts"),  # type: ignore[arg-type]
        (lambda: Counter("n", tag_keys=("a", "a")), ValueError, "differ"),
        (lambda: Counter("n", tag_keys=("a-b",)), ValueError, "cannot be a tag"),
        (lambda: Counter("n", tag_keys=("__a",)), ValueError, "cannot be a tag"),
        (lambda: Gauge("n", tag_keys=("deployment",)), ValueError, "reserved"),
        (lambda: Gauge("n", tag_keys=("replica",)), ValueError, "reserved"),
        (lambda: Gauge("n", tag_keys=("application",)), ValueError, "reserved"),
        (lambda: Histogram("n"), ValueError, "needs boundaries"),
        (lambda: Histogram("n", boundaries=[]), ValueError, "needs boundaries"),
        (lambda: Histogram("n", boundaries=[0, 1]), ValueError, "must all be > 0"),
        (lambda: Histogram("n", boundaries=[math.nan]), ValueError, "must all be > 0"),
        (lambda: Histogram("n", boundaries=range(1, 1000)), ValueError, "too many"),
        (lambda: Histogram("n", boundaries=[1], tag_keys=("le",)), ValueError, "own 'le'"),
    ],
)
def test_what_cannot_be_a_metric_is_refused(
    declare: Callable[[], object], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        declare()


def test_a_text_of_another_class_is_counted_as_plain_text(replica: ReplicaContext) -> None:
    counter = Counter("n", tag_keys=("a",))
    counter.inc(tags={"a": replica.replica_id})
    (key,) = rows(replica, "n")
    assert {type(value) for value in key} == {str}


@pytest.mark.parametrize(
    ("count", "kind", "said"),
    [
        (lambda m: m.inc(0), ValueError, "must be > 0"),
        (lambda m: m.inc(-1), ValueError, "must be > 0"),
        (lambda m: m.inc(math.nan), ValueError, "must be > 0"),
        (lambda m: m.inc(math.inf), ValueError, "must be > 0"),
        (lambda m: m.inc("1"), TypeError, "must be a number"),
        (lambda m: m.inc(), ValueError, r"Missing value for tag key\(s\) of metric 'n': a"),
        (lambda m: m.inc(tags={"b": "1"}), ValueError, "Unrecognized tag key 'b'"),
        (lambda m: m.inc(tags={"a": "1", "b": "1"}), ValueError, "Unrecognized tag key 'b'"),
        (lambda m: m.inc(tags={"a": 1}), TypeError, "must be a str"),
        (lambda m: m.inc(tags={"a": None}), TypeError, "must be a str"),
        (lambda m: m.set_default_tags({"b": "1"}), ValueError, "Unrecognized tag key 'b'"),
        (lambda m: m.set_default_tags({"a": 1}), TypeError, "must be a str"),
        (lambda m: m.set_default_tags({"replica": "1"}), ValueError, "reserved"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    count: Callable[[Any], object], kind: type[Exception], said: str, replica: ReplicaContext
) -> None:
    counter = Counter("n", tag_keys=("a",))
    with pytest.raises(kind, match=said):
        count(counter)
    assert rows(replica, "n") == {}


def test_a_name_that_prometheus_cannot_have_is_said_and_not_counted(
    replica: ReplicaContext,
) -> None:
    for name in ("1st", "with.dot", "ünicode", "with blank"):
        with pytest.warns(UserWarning, match="nothing is counted"):
            counter = Counter(name)
        counter.inc()
        with pytest.warns(UserWarning, match="nothing is counted"):
            histogram = Histogram(name, boundaries=[1])
        histogram.observe(1)
    assert replica.user_metrics.families((), ()) == []


def test_one_name_is_one_metric(replica: ReplicaContext) -> None:
    for _ in range(2):
        # As in handlers that make one for each request.
        Counter("n", tag_keys=("a",)).inc(tags={"a": "1"})
    Counter("n_total", description="other words", tag_keys=("a",)).inc(tags={"a": "1"})
    assert rows(replica, "n") == {("1",): [3.0]}
    for other in (lambda: Counter("n"), lambda: Gauge("n", tag_keys=("a",))):
        with pytest.raises(ValueError, match="declared twice: as a counter with the tags a"):
            other()


def test_what_is_made_outside_of_a_replica_counts_for_whoever_uses_it() -> None:
    counter = Counter("n")
    counter.inc()
    for number in (1, 2):
        context = ReplicaContext(ReplicaID(f"a/D#{number}"), DeploymentID("D", "a"))
        set_replica_context(context)
        try:
            counter.inc(number)
        finally:
            set_replica_context(None)
        assert rows(context, "n") == {(): [number]}
    # A cell of a notebook that is changed and run again.
    Counter("n", tag_keys=("a",)).inc(tags={"a": "1"})


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_it_travels_without_what_it_has_counted(pickler: Any, replica: ReplicaContext) -> None:
    counter = Counter("n", description="d", tag_keys=("a",)).set_default_tags({"a": "1"})
    counter.inc()
    histogram = Histogram("h", boundaries=(1, 2), tag_keys=("a",))
    sent = pickler.dumps((counter, histogram))
    other = ReplicaContext(ReplicaID("a/D#2"), DeploymentID("D", "a"))
    set_replica_context(other)
    came, also = pickle.loads(sent)
    assert (came.info, also.info) == (counter.info, histogram.info)
    came.inc(5)
    assert rows(other, "n") == {("1",): [5.0]}


def test_threads_lose_no_count(replica: ReplicaContext) -> None:
    counter = Counter("n")
    histogram = Histogram("h", boundaries=[1])

    def work() -> None:
        for _ in range(2_000):
            counter.inc()
            histogram.observe(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(replica, "n") == {(): [8_000]}
    assert rows(replica, "h") == {(): [8_000, 0, 8_000]}


def test_tags_with_a_value_for_each_request_are_bounded(
    replica: ReplicaContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(user_metrics, "MAX_ROWS_OF_ONE", 10)
    counter = Counter("n", tag_keys=("a",))
    gauge = Gauge("g", tag_keys=("a",))
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            counter.inc(tags={"a": str(number)})
            gauge.set(1, tags={"a": str(number)})
    assert len(rows(replica, "n")) == 11
    assert rows(replica, "n")[OTHER,] == [90]
    assert len(rows(replica, "g")) == 10
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "'a': '10'" in said[0]


def test_all_metrics_together_are_bounded(
    replica: ReplicaContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(user_metrics, "MAX_ROWS", 5)
    monkeypatch.setattr(user_metrics, "MAX_METRICS", 3)
    for number in range(6):
        counter = Counter(f"n{number}", tag_keys=("a",))
        for value in range(4):
            counter.inc(tags={"a": str(value)})
    found = {each.name: each.rows for each in replica.user_metrics.families((), ())}
    assert set(found) == {"n0", "n1", "n2"}
    assert sum(sum(row[0] for row in each.values()) for each in found.values()) == 12
    # Five rows, and one for all others of each metric.
    assert replica.user_metrics.num_rows <= 8
    assert any("has 3 metrics" in record.getMessage() for record in caplog.records)


def test_any_text_travels_and_is_rendered(replica: ReplicaContext) -> None:
    odd = 'a\ud800"\\\n'
    Counter("n", description="two\nlines \ud800", tag_keys=("a",)).inc(tags={"a": odd})
    Gauge("g").set(math.inf)
    Gauge("h").set(math.nan)
    report = MetricsReport(tuple(replica.user_metrics.families(("app",), ("x",))))
    text = render(merged(unpack(pack(report), MetricsReport).families))
    assert text.splitlines() == [
        "# TYPE g gauge",
        'g{app="x"} +Inf',
        "# TYPE h gauge",
        'h{app="x"} NaN',
        "# HELP n_total two\\nlines ?",
        "# TYPE n_total counter",
        'n_total{app="x",a="a?\\"\\\\\\n"} 1',
    ]


def test_gauges_do_not_outlive_their_replica(replica: ReplicaContext) -> None:
    Counter("n").inc()
    Gauge("g").set(1)
    lasting = replica.user_metrics.families((), (), lasting=True)
    assert [each.name for each in lasting] == ["n"]


def test_nothing_is_kept_of_what_was_only_declared() -> None:
    kept = UserMetrics()
    assert kept.families((), ()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Counter("never_used")
