"""The events of `sse.py` on Remora, with room for 128 streams."""

from __future__ import annotations

import remora as serve
from benchmarks.apps.sse import app as starlette_app


@serve.deployment(max_ongoing_requests=200)
@serve.ingress(starlette_app)
class Events:
    """Nothing but the application."""


app = Events.bind()
