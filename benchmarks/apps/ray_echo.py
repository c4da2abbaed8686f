"""The deployment of the handle rows on Ray Serve, all defaults."""

from __future__ import annotations

from ray import serve

from benchmarks.apps.work import Echo

app = serve.deployment(Echo).bind()
