"""The gRPC service on Remora, with room for the 32 requests of the load."""

from __future__ import annotations

import remora as serve
from benchmarks.apps.grpc_echo import Echo

app = serve.deployment(Echo, max_ongoing_requests=100).bind()
