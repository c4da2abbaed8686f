"""The FastAPI application as an ingress on Remora, all defaults."""

from __future__ import annotations

import remora as serve
from benchmarks.apps.api import app as api


class Api:
    """Serves the endpoints of the FastAPI application."""


app = serve.deployment(serve.ingress(api)(Api)).bind()
