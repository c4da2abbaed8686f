"""The FastAPI application as an ingress on Ray Serve, with room for the 32 requests in flight."""

from __future__ import annotations

from ray import serve

from benchmarks.apps.api import app as api


class Api:
    """Serves the endpoints of the FastAPI application."""


# The default of 5 would leave its router asleep between retries.
app = serve.deployment(serve.ingress(api)(Api), max_ongoing_requests=100).bind()
