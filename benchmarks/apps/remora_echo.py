"""The deployment of the handle rows on Remora, all defaults."""

from __future__ import annotations

import remora as serve
from benchmarks.apps.work import Echo

app = serve.deployment(Echo).bind()
