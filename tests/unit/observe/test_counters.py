"""Counters count every request once, in the right bucket."""

from __future__ import annotations

import pytest

from remora.observe import counters as module
from remora.observe.counters import BUCKETS_S, OTHER, RequestCounters


def test_rows_hold_the_number_and_the_sum() -> None:
    counters = RequestCounters()
    for took_s in (0.0005, 0.001, 0.3, 100.0):
        counters.count("app", "GET", 200, took_s, "/a")
    counters.count("app", "GET", 500, 1.0, "/a")
    counters.count("app", "GET", 500, 1.0, "/b")
    rows = {row[:4]: row[4:] for row in counters.rows()}
    assert rows["app", "GET", 200, "/a"][0] == 4
    assert abs(rows["app", "GET", 200, "/a"][1] - 100.3015) < 1e-9
    assert rows["app", "GET", 500, "/a"] == rows["app", "GET", 500, "/b"] == (1, 1.0)
    assert list(BUCKETS_S) == sorted(BUCKETS_S)


def test_there_are_only_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    counters = RequestCounters()
    for number in range(100):
        counters.count("app", f"M{number}", 200, 0.1, "/a")
    rows = {row[:4]: row[4] for row in counters.rows()}
    assert rows["app", OTHER, 200, OTHER] == 97
    assert len(rows) == 4
