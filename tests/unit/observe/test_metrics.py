"""Metrics of several processes become one text that Prometheus can read."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from remora.observe.metrics import counter, disagreeing, gauge, merged, render
from remora.wire.codec import pack, unpack
from remora.wire.metrics import Family, MetricsReport

_ROWS = st.dictionaries(
    st.tuples(st.sampled_from(("a", "b")), st.sampled_from(("x", "y"))), st.integers(0, 10**12)
)


def test_rows_of_several_processes_are_added_up() -> None:
    shop = ("shop",)
    latency = Family("wait_ms", "histogram", ("app",), {shop: [1, 2, 3, 60.5]}, (1.0, 5.0))
    both = merged((latency, counter("n", ("app",), {shop: 2}), latency, gauge("g", (), {(): 1})))
    assert [family.name for family in both] == ["g", "n", "wait_ms"]
    assert both[2].rows == {shop: [2, 4, 6, 121.0]}
    assert latency.rows == {shop: [1, 2, 3, 60.5]}
    assert render(both).splitlines() == [
        "# TYPE g gauge",
        "g 1",
        "# TYPE n_total counter",
        'n_total{app="shop"} 2',
        "# TYPE wait_ms histogram",
        'wait_ms_bucket{app="shop",le="1"} 2',
        'wait_ms_bucket{app="shop",le="5"} 6',
        'wait_ms_bucket{app="shop",le="+Inf"} 12',
        'wait_ms_sum{app="shop"} 121',
        'wait_ms_count{app="shop"} 12',
    ]


def test_a_family_of_another_version_is_left_out() -> None:
    ours = Family("wait_ms", "histogram", (), {(): [1, 2, 3.0]}, (1.0,))
    theirs = Family("wait_ms", "histogram", (), {(): [1, 2, 3, 4.0]}, (1.0, 2.0))
    assert merged((ours, theirs)) == merged((ours,))


@given(st.lists(_ROWS, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_processes_does_not_matter(
    parts: list[dict[tuple[str, ...], float]], rng: random.Random
) -> None:
    families = [counter("n", ("a", "b"), rows) for rows in parts]
    shuffled = rng.sample(families, len(families))
    assert render(merged(families)) == render(merged(shuffled))
    total = sum(sum(rows.values()) for rows in parts)
    assert sum(row[0] for family in merged(families) for row in family.rows.values()) == total


def test_large_counters_keep_all_their_digits() -> None:
    text = render([counter("n", (), {(): 12_345_678_901})])
    assert "n_total 12345678901\n" in text
    assert "g 0.1\n" in render([gauge("g", (), {(): 0.1})])


def test_families_travel() -> None:
    report = MetricsReport((counter("n", ("app",), {("shop",): 2}),))
    assert unpack(pack(report), MetricsReport) == report


def of_user(name: str, kind: str, *labels: str, **more: Any) -> Family:
    row = [1.0] * (len(more.get("bounds", ())) + 2 if kind == "histogram" else 1)
    return Family(name, kind, labels, {tuple(labels): row}, by_user=True, **more)


def test_metrics_of_users_with_one_name_may_have_other_tags_and_bounds() -> None:
    families = [
        of_user("n", "counter", "replica", "a", text="What it is."),
        of_user("n", "counter", "replica"),
        of_user("h", "histogram", "replica", bounds=(1.0,)),
        of_user("h", "histogram", "replica", "b", bounds=(2.0,)),
    ]
    text = render(merged(families))
    assert text.count("# TYPE n_total counter") == text.count("# TYPE h histogram") == 1
    assert text.count("n_total{") == 2
    assert text.count("h_bucket{") == 4
    assert not disagreeing(families)


def test_users_cannot_speak_in_the_name_of_others() -> None:
    ours = gauge("g", ("replica",), {("replica",): 7})
    theirs = of_user("g", "gauge", "replica")
    other_kind = of_user("n", "gauge", "replica")
    families = [theirs, of_user("n", "counter", "replica"), other_kind, ours]
    found = {each.name: each for each in merged(families)}
    assert found["g"].rows == {("replica",): [7]}
    assert found["n"].kind == "counter"
    assert disagreeing(families) == {"g", "n"}
