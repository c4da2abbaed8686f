"""Two bytes on Remora, all defaults."""

from __future__ import annotations

import remora as serve
from benchmarks.apps.work import Hello

app = serve.deployment(Hello).bind()
