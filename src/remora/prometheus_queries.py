"""Numbers from a Prometheus server for autoscaling policies.

A policy must answer at once, so nothing here waits for the network: a thread asks the server every
few seconds, and what it was told last is there to be read for a while.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import urllib.parse
import urllib.request
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remora.errors import ConfigError
from remora.options.checks import require_number
from remora.types import Seconds

__all__ = ["PrometheusQueryMixin", "PrometheusSample", "PrometheusScalar", "PrometheusVector"]

_log = logging.getLogger("remora.policy")
#: Names that Ray's users set already.
_ADDRESS = "RAY_PROMETHEUS_HOST"
_HEADERS = "RAY_PROMETHEUS_HEADERS"
#: A server that is there needs milliseconds.
_LIMIT_S: Seconds = 5.0


@dataclass(frozen=True)
class PrometheusScalar:
    """A number, and its Unix time."""

    value: float
    timestamp: float


@dataclass(frozen=True)
class PrometheusSample:
    """One series of a vector at one moment."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


@dataclass(frozen=True)
class PrometheusVector:
    """Every series that a query has found; there may be none."""

    samples: tuple[PrometheusSample, ...]


PrometheusResult = PrometheusScalar | PrometheusVector


class _Cache:
    """What the server said last. The thread holds this and not the policy, which may go."""

    def __init__(self) -> None:
        self.results: dict[str, PrometheusResult] | None = None
        self.fetched_s: Seconds = 0.0
        self.ended = threading.Event()


class PrometheusQueryMixin:
    """Mix it into a policy's class and read `prometheus_metrics` or `prometheus_results`."""

    def __init__(
        self,
        *,
        prometheus_address: str | None = None,
        prometheus_queries: Sequence[str] | None = None,
        fetch_interval_s: Seconds = 5.0,
        cache_ttl_s: Seconds = 15.0,
        **kwargs: Any,
    ) -> None:
        """Make it; the first read begins to ask.

        Args:
            prometheus_address: URL of the server; None: that in `RAY_PROMETHEUS_HOST`.
            prometheus_queries: in PromQL.
            fetch_interval_s: seconds between two rounds, > 0.
            cache_ttl_s: seconds that answers are good for, > 0.
            kwargs: for the next class.

        Raises:
            ConfigError: a time is not positive.
        """
        super().__init__(**kwargs)
        require_number("fetch_interval_s", fetch_interval_s, above=0)
        require_number("cache_ttl_s", cache_ttl_s, above=0)
        self._prometheus_address = prometheus_address or os.environ.get(_ADDRESS, "")
        self._prometheus_queries = tuple(prometheus_queries or ())
        self._fetch_interval_s = fetch_interval_s
        self._cache_ttl_s = cache_ttl_s
        self._cache: _Cache | None = None

    @property
    def prometheus_results(self) -> dict[str, PrometheusResult] | None:
        """What each query has found; None: nothing is known, or it is too old. Never waits."""
        if not self._prometheus_address or not self._prometheus_queries:
            return None
        if self._cache is None:
            self._cache = self._start()
        cache = self._cache
        if cache.results is None or time.monotonic() - cache.fetched_s > self._cache_ttl_s:
            return None
        return dict(cache.results)

    @property
    def prometheus_metrics(self) -> dict[str, float] | None:
        """The number of each query that has found just one; None as above. Never waits."""
        results = self.prometheus_results
        if results is None:
            return None
        metrics = {}
        for query, result in results.items():
            if isinstance(result, PrometheusScalar):
                metrics[query] = result.value
            elif len(result.samples) == 1:
                metrics[query] = result.samples[0].value
        return metrics

    def _start(self) -> _Cache:
        cache = _Cache()
        weakref.finalize(self, cache.ended.set)
        arguments = (
            cache,
            self._prometheus_address.rstrip("/"),
            self._prometheus_queries,
            _headers(),
            self._fetch_interval_s,
        )
        threading.Thread(
            target=_keep_asking, args=arguments, name="remora-prometheus", daemon=True
        ).start()
        return cache


def _headers() -> dict[str, str]:
    text = os.environ.get(_HEADERS)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    # An object, or a list of pairs.
    if isinstance(found, list) and all(isinstance(p, list) and len(p) == 2 for p in found):
        found = dict(found)
    if not isinstance(found, dict):
        raise ConfigError(_HEADERS, text, "must be a JSON object of names and values")
    return {str(name): str(value) for name, value in found.items()}


def _keep_asking(
    cache: _Cache,
    address: str,
    queries: tuple[str, ...],
    headers: dict[str, str],
    interval_s: Seconds,
) -> None:
    is_failing = False
    while not cache.ended.is_set():
        try:
            results = {query: _ask(address, query, headers) for query in queries}
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not is_failing:
                is_failing = True
                _log.warning(
                    "Prometheus at %s did not answer: %s. Said once until it does.", address, error
                )
        else:
            is_failing = False
            cache.results, cache.fetched_s = results, time.monotonic()
        cache.ended.wait(interval_s)


def _ask(address: str, query: str, headers: dict[str, str]) -> PrometheusResult:
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{address!r} is no URL that begins with http:// or https://")
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_LIMIT_S) as response:
        answer = json.load(response)
    if answer.get("status") != "success":
        raise ValueError(f"query {query!r}: {answer.get('error', answer)}")
    data = answer["data"]
    if data["resultType"] == "scalar":
        at, value = data["result"]
        return PrometheusScalar(float(value), float(at))
    if data["resultType"] != "vector":
        raise ValueError(f"query {query!r} gives a {data['resultType']}: ask for one moment")
    return PrometheusVector(
        tuple(
            PrometheusSample(each["metric"], float(each["value"][1]), float(each["value"][0]))
            for each in data["result"]
        )
    )
