"""The counters in the text format of Prometheus."""

from __future__ import annotations

from remora.observe.counters import RequestCounters


def test_counts_and_buckets_add_up() -> None:
    counters = RequestCounters()
    counters.count("shop", "GET", 200, 0.0004, "/a")
    counters.count("shop", "GET", 200, 0.02, "/a")
    counters.count("shop", "GET", 503, 999.0, "/a")
    lines = counters.render().splitlines()
    ok = 'application="shop",method="GET",route="/a",status_code="200"'
    bad = 'application="shop",method="GET",route="/a",status_code="503"'
    assert f"serve_num_http_requests_total{{{ok}}} 2" in lines
    assert f"serve_num_http_error_requests_total{{{bad}}} 1" in lines
    assert not any("error" in line and ok in line for line in lines)
    assert f'serve_http_request_latency_ms_bucket{{{ok},le="1"}} 1' in lines
    assert f'serve_http_request_latency_ms_bucket{{{ok},le="25"}} 2' in lines
    assert f'serve_http_request_latency_ms_bucket{{{bad},le="60000"}} 0' in lines
    assert f'serve_http_request_latency_ms_bucket{{{bad},le="+Inf"}} 1' in lines
    assert f"serve_http_request_latency_ms_sum{{{ok}}} 20.4" in lines


def test_labels_cannot_break_out_of_their_quotes() -> None:
    counters = RequestCounters()
    counters.count('a"b\\c\nd', "GET", 200, 0.1)
    text = counters.render()
    assert 'application="a\\"b\\\\c\\nd"' in text
