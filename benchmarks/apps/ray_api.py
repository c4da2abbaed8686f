"""The FastAPI application as an ingress on Ray Serve, all defaults."""

from __future__ import annotations

from ray import serve

from benchmarks.apps.api import app as api


class Api:
    """Serves the endpoints of the FastAPI application."""


app = serve.deployment(serve.ingress(api)(Api)).bind()
