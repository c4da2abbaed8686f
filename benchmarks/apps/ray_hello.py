"""Two bytes on Ray Serve, all defaults."""

from __future__ import annotations

from ray import serve

from benchmarks.apps.work import Hello

app = serve.deployment(Hello).bind()
