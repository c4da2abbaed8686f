"""The deployment of the handle rows on Ray Serve, with room for the 32 requests in flight."""

from __future__ import annotations

from ray import serve

from benchmarks.apps.work import Echo

# The default of 5 would leave its router asleep between retries: 15 calls/s instead of 430.
app = serve.deployment(Echo, max_ongoing_requests=100).bind()
