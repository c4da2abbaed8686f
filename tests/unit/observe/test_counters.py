"""Counters count every request once, in the right bucket."""

from __future__ import annotations

from remora.observe.counters import BUCKETS_S, RequestCounters


def test_rows_hold_the_number_and_the_sum() -> None:
    counters = RequestCounters()
    for took_s in (0.0005, 0.001, 0.3, 100.0):
        counters.count("app", "GET", 200, took_s)
    counters.count("app", "GET", 500, 1.0)
    rows = {row[:3]: row[3:] for row in counters.rows()}
    assert rows["app", "GET", 200][0] == 4
    assert abs(rows["app", "GET", 200][1] - 100.3015) < 1e-9
    assert rows["app", "GET", 500] == (1, 1.0)
    assert list(BUCKETS_S) == sorted(BUCKETS_S)
