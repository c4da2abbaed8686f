"""Two bytes on Ray Serve, with room for the 32 requests in flight."""

from __future__ import annotations

from ray import serve

from benchmarks.apps.work import Hello

# The default of 5 would leave its router asleep between retries: 15 calls/s instead of 430.
app = serve.deployment(Hello, max_ongoing_requests=100).bind()
