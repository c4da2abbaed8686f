"""The FastAPI application as an ingress on Remora, with room for the 32 requests of the load."""

from __future__ import annotations

import remora as serve
from benchmarks.apps.api import app as api


class Api:
    """Serves the endpoints of the FastAPI application."""


app = serve.deployment(serve.ingress(api)(Api), max_ongoing_requests=100).bind()
