"""Policies that ask Prometheus: from a thread, with what was said last."""

from __future__ import annotations

import gc
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from remora.autoscaling_policy import (
    PrometheusQueryMixin,
    PrometheusSample,
    PrometheusScalar,
    PrometheusVector,
)
from remora.errors import ConfigError

ANSWERS: dict[str, Any] = {
    "scalar(3)": {"resultType": "scalar", "result": [1700.5, "3"]},
    "one": {"resultType": "vector", "result": [{"metric": {"job": "a"}, "value": [1700, "7.5"]}]},
    "many": {
        "resultType": "vector",
        "result": [{"metric": {"job": name}, "value": [1700, "1"]} for name in ("a", "b")],
    },
    "none": {"resultType": "vector", "result": []},
}


class Server:
    """Answers like Prometheus."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.is_broken = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)["query"][0]
                outer.asked.append(query)
                outer.headers.append(dict(self.headers))
                data = ANSWERS.get(query)
                answer: dict[str, Any] = {"status": "success", "data": data}
                if data is None:
                    answer = {"status": "error", "error": "parse error"}
                self.send_response(500 if outer.is_broken else 200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: object) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < end
        threading.Event().wait(0.005)
    return found


class Policy(PrometheusQueryMixin):
    pass


def test_a_policy_reads_what_a_server_says(server: Server) -> None:
    policy = Policy(
        prometheus_address=f"{server.url}/",
        prometheus_queries=list(ANSWERS),
        fetch_interval_s=0.01,
    )
    # Nobody is asked before somebody wants to know, and nobody waits.
    assert server.asked == []
    assert policy.prometheus_results is None
    results = until(lambda: policy.prometheus_results)
    assert results["scalar(3)"] == PrometheusScalar(3.0, 1700.5)
    assert results["one"] == PrometheusVector((PrometheusSample({"job": "a"}, 7.5, 1700.0),))
    assert len(results["many"].samples) == 2
    assert results["none"] == PrometheusVector(())
    # Only those that are one number.
    assert policy.prometheus_metrics == {"scalar(3)": 3.0, "one": 7.5}


def test_address_and_headers_come_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_PROMETHEUS_HOST", server.url)
    monkeypatch.setenv("RAY_PROMETHEUS_HEADERS", '{"Authorization": "Bearer x"}')
    policy = Policy(prometheus_queries=["one"])
    until(lambda: policy.prometheus_metrics)
    assert server.headers[0]["Authorization"] == "Bearer x"
    monkeypatch.setenv("RAY_PROMETHEUS_HEADERS", "no JSON")
    with pytest.raises(ConfigError, match="RAY_PROMETHEUS_HEADERS"):
        _ = Policy(prometheus_queries=["one"]).prometheus_metrics


def test_without_an_address_or_queries_there_is_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_PROMETHEUS_HOST", raising=False)
    assert Policy(prometheus_queries=["one"]).prometheus_metrics is None
    assert Policy(prometheus_address=server.url).prometheus_metrics is None


def test_what_is_too_old_is_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(
        prometheus_address=server.url,
        prometheus_queries=["one"],
        fetch_interval_s=0.01,
        cache_ttl_s=0.3,
    )
    until(lambda: policy.prometheus_metrics)
    server.is_broken = True
    until(lambda: policy.prometheus_metrics is None)
    assert caplog.text.count("did not answer") == 1
    server.is_broken = False
    until(lambda: policy.prometheus_metrics)


def test_a_query_that_is_none_is_told(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(
        prometheus_address=server.url, prometheus_queries=["sum("], fetch_interval_s=0.01
    )
    assert policy.prometheus_metrics is None
    until(lambda: "query 'sum(': parse error" in caplog.text)


def test_nobody_asks_any_more_once_the_policy_is_gone(server: Server) -> None:
    held = [
        Policy(prometheus_address=server.url, prometheus_queries=["one"], fetch_interval_s=0.01)
    ]
    until(lambda: held[0].prometheus_metrics)
    cache = held[0]._cache
    assert cache is not None
    held.clear()
    gc.collect()
    assert cache.ended.is_set()


@pytest.mark.parametrize("field", ["fetch_interval_s", "cache_ttl_s"])
def test_times_are_positive(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Policy(**{field: 0})  # type: ignore[arg-type]
